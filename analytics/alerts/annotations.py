"""Fills in the templates of a rule: ``{label}``, ``{value}`` and ``{value:.1%}``."""

import re
from collections.abc import Mapping
from urllib.parse import quote

ANNOTATION_CHARS_MAX = 4000

_FIELD = re.compile(r"\{(\w+)(?::([^{}]{0,8}))?\}")


def render(template: str, labels: Mapping[str, str], value: float | None) -> str:
    """Return ``template`` with its fields filled in; a field without a label stays as written."""

    def fill(match: re.Match[str]) -> str:
        name, spec = match[1], match[2]
        if name != "value":
            return labels.get(name, match[0])
        if value is None:
            return "no data"
        try:
            return format(value, spec or ".6g")
        except ValueError:
            return f"{value:.6g}"

    return _FIELD.sub(fill, template)[:ANNOTATION_CHARS_MAX]


def render_path(template: str, labels: Mapping[str, str]) -> str:
    """Return a dashboard path with the labels filled in, quoted for a URL."""
    return render(template, {name: quote(value, safe="") for name, value in labels.items()}, None)
