"""Colours, light and dark.

Categories are the eight colours of Okabe and Ito (2008), distinguishable with any common colour vision, ordered so that neighbours
differ in lightness too, without the two of least contrast on each background. Sequences are cividis (Nuñez et al., 2018). Nothing is
shown by colour alone: lines have dash patterns, states have labels.
"""

LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D")
DARK = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#CFCFCF")

CIVIDIS = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")

# The low end of the scale for pictures in which most places are at rest: the grey of the background, then cividis.
_REST = ("#EEF1F4", "#1C232B")

# Text and background, indexed by whether the theme is dark.
INK = ("#1B1F24", "#E6EAEE")
PAPER = ("#FFFFFF", "#0F1318")

# Dash patterns that go with the colours, in the same order.
DASHES = ([1, 0], [8, 3], [4, 2], [8, 2, 2, 2], [12, 4], [2, 2], [6, 2, 2, 2, 2, 2])

_SHARED = {
    "baseRadius": "small",
    "showWidgetBorder": True,
    "headingFontSizes": ["1.75rem", "1.35rem", "1.1rem"],
    "metricValueFontSize": "1.75rem",
    "paddingTop": "1rem",
}


def options() -> dict[str, object]:
    """Return the themes as Streamlit's configuration."""
    flat: dict[str, object] = {f"theme.{name}": value for name, value in _SHARED.items()}
    for dark, mode in enumerate(("light", "dark")):
        colours = {
            "primaryColor": (LIGHT, DARK)[dark][0],
            "backgroundColor": PAPER[dark],
            "secondaryBackgroundColor": ("#F3F5F7", "#1A2027")[dark],
            "textColor": INK[dark],
            "borderColor": ("#D5DAE0", "#323A44")[dark],
            "chartCategoricalColors": categories(bool(dark)),
            "chartSequentialColors": sequence(bool(dark)),
        }
        flat |= {f"theme.{mode}.{name}": value for name, value in colours.items()}
    return flat


def categories(dark: bool) -> list[str]:
    """Return the colours of categories."""
    return list(DARK if dark else LIGHT)


def sequence(dark: bool) -> list[str]:
    """Return the colours from low to high; high has the most contrast to the background."""
    return list(CIVIDIS if dark else reversed(CIVIDIS))


def pressure(dark: bool) -> list[str]:
    """Return the colours from rest to high."""
    return [_REST[dark], *(CIVIDIS[1:] if dark else reversed(CIVIDIS[:-1]))]
