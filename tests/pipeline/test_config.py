"""The configuration: defaults, one file, the environment over both, and errors with place and hint."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.pipeline.config import dump, load
from weft.pipeline.errors import ConfigError


@dataclass(frozen=True)
class Endpoint:
    url: str = ""
    retries: int = 3


@dataclass(frozen=True)
class Window:
    lateness_s: float = 0.5
    live: bool = True

    def __post_init__(self) -> None:
        if self.lateness_s < 0:
            raise ValueError("lateness_s is negative")


@dataclass(frozen=True)
class Process:
    windows: Window = field(default_factory=Window)
    poll_bytes_max: int = 16
    names: tuple[str, ...] = ("a",)
    ratios: tuple[float, ...] = ()
    keep_days: tuple[tuple[str, float], ...] = (("1s", 2.0),)
    endpoints: tuple[Endpoint, ...] = ()
    file: str | None = None


@dataclass(frozen=True)
class Settings:
    process: Process = field(default_factory=Process)
    rates: Mapping[str, float] = field(default_factory=dict)


def read(tmp_path: Path, text: str = "", environment: dict[str, str] | None = None, others: tuple[str, ...] = ()) -> Settings:
    file = tmp_path / "weft.toml"
    file.write_text(text, encoding="utf-8")
    return load(Settings, file, environment or {}, others)


def complaint(tmp_path: Path, text: str = "", environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, environment)
    return str(caught.value).replace(str(tmp_path), "")


def test_nothing_is_needed(tmp_path: Path) -> None:
    """Without a file and without variables every default holds; an empty file is the same."""
    assert load(Settings, None, {}) == Settings() == read(tmp_path)


def test_a_file_overrides_what_it_names(tmp_path: Path) -> None:
    """Keys of the file override the defaults, integers are accepted as floats, lists become tuples."""
    text = """
        [process]
        poll_bytes_max = 7
        names = ["x", "y"]
        ratios = [1, 0.5]
        keep_days = [["1s", 1], ["", 30]]
        endpoints = [{ url = "http://a" }, { url = "http://b", retries = 0 }]
        file = "f"
        windows = { lateness_s = 2 }
        [rates]
        lo = 1e9
        "eth0.5" = 2
    """
    got = read(tmp_path, text)
    endpoints = (Endpoint("http://a"), Endpoint("http://b", 0))
    process = Process(Window(2.0), 7, ("x", "y"), (1.0, 0.5), (("1s", 1.0), ("", 30.0)), endpoints, "f")
    assert got == Settings(process, {"lo": 1e9, "eth0.5": 2.0})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[process]\n\npol_bytes_max = 3", "/weft.toml:3: unknown key 'process.pol_bytes_max'; did you mean 'poll_bytes_max'?"),
        ("[proces]\n", "/weft.toml:1: unknown key 'proces'; did you mean 'process'?"),
        ("[process.windows]\nlatenes_s = 1", "/weft.toml:2: unknown key 'process.windows.latenes_s'; did you mean 'lateness_s'?"),
        ("[process]\nwindows.latenes_s = 1", "/weft.toml:2: unknown key 'process.windows.latenes_s'; did you mean 'lateness_s'?"),
        ("[process.windows]\nzzz = 1", "/weft.toml:2: unknown key 'process.windows.zzz'; known are lateness_s, live"),
        ("# a\n[process]\npoll_bytes_max = 'many'", "/weft.toml:3: 'process.poll_bytes_max' is 'many'; write a value of type int"),
        ("[process]\npoll_bytes_max = true", "/weft.toml:2: 'process.poll_bytes_max' is True; write a value of type int"),
        ("[process]\npoll_bytes_max = 1.5", "/weft.toml:2: 'process.poll_bytes_max' is 1.5; write a value of type int"),
        ("[process]\nnames = 'x'", "/weft.toml:2: 'process.names' is 'x'; write a list"),
        ("[process.windows]\nlive = 1", "/weft.toml:2: 'process.windows.live' is 1; write a value of type bool"),
        ("process = 3", "/weft.toml:1: 'process' is a table; write it as [process]"),
        ("[process.windows]\nlateness_s = -1", "/weft.toml:1: lateness_s is negative; correct the value"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_mend(tmp_path: Path, text: str, expected: str) -> None:
    """A wrong key or value gives file, line, the key and what to write instead."""
    assert complaint(tmp_path, text) == expected


def test_a_list_of_the_wrong_things_is_refused(tmp_path: Path) -> None:
    """Every item of a list is checked, in lists of lists too."""
    assert "names" in complaint(tmp_path, "[process]\nnames = [1]")
    assert "keep_days" in complaint(tmp_path, "[process]\nkeep_days = [['1s', 'two']]")
    assert "keep_days" in complaint(tmp_path, "[process]\nkeep_days = [['1s']]")
    assert "rates.lo" in complaint(tmp_path, "[rates]\nlo = 'fast'")
    assert "did you mean 'retries'" in complaint(tmp_path, "[process]\nendpoints = [{ retris = 1 }]")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file that is missing, a folder, not TOML or not text gives one sentence with a hint."""
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(Settings, path, {})
    assert "is not TOML" in complaint(tmp_path, "[process\n")
    (tmp_path / "latin.toml").write_bytes("# é".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        load(Settings, tmp_path / "latin.toml", {})


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """``WEFT_`` variables reach any depth by two underscores and are typed by their field."""
    environment = {
        "WEFT_PROCESS__WINDOWS__LATENESS_S": "3",
        "WEFT_PROCESS__WINDOWS__LIVE": "false",
        "WEFT_PROCESS__POLL_BYTES_MAX": "99",
        "WEFT_PROCESS__NAMES": "p, q",
        "WEFT_PROCESS__RATIOS": "0.5,1",
        "WEFT_PROCESS__FILE": "7",
        "OTHER": "x",
        "WEFT_TEST_KAFKA": "x",
        "WEFT_SHARED_DATA": "x",
    }
    got = read(tmp_path, "[process]\npoll_bytes_max = 1\nfile = 'f'", environment)
    assert got.process == Process(Window(3.0, False), 99, ("p", "q"), (0.5, 1.0), file="7")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("WEFT_PROCES__NAMES", "x", "WEFT_PROCES__NAMES: is not a setting; did you mean 'process'?"),
        ("WEFT_PROCESS__NAME", "x", "WEFT_PROCESS__NAME: is not a setting; did you mean 'names'?"),
        ("WEFT_PROCESS__POLL_BYTES_MAX", "x", "WEFT_PROCESS__POLL_BYTES_MAX: 'poll_bytes_max' is 'x'; write a value of type int"),
        (
            "WEFT_PROCESS__POLL_BYTES_MAX__X",
            "1",
            "WEFT_PROCESS__POLL_BYTES_MAX__X: 'poll_bytes_max' has no sub-settings; see 'weft check --dump'",
        ),
        ("WEFT_PROCESS__WINDOWS__LATENESS_S", "-1", "WEFT_PROCESS__WINDOWS__LATENESS_S: lateness_s is negative; correct the value"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, text: str, expected: str) -> None:
    """A variable that is not a setting, or whose value does not fit, is an error that names it."""
    assert complaint(tmp_path, "", {name: text}) == expected


def test_sections_of_others_are_not_judged(tmp_path: Path) -> None:
    """A service ignores the sections of other services, in the file and in the environment."""
    got = read(tmp_path, "[collect]\nanything = 1", {"WEFT_COLLECT__ANYTHING": "2"}, ("collect",))
    assert got == Settings()


@given(
    st.builds(
        Settings,
        st.builds(
            Process,
            st.builds(Window, st.floats(0, 1e300), st.booleans()),
            st.integers(-(2**63), 2**63 - 1),
            st.lists(st.text()).map(tuple),
            st.lists(st.floats(allow_nan=False)).map(tuple),
            st.lists(st.tuples(st.text(), st.floats(allow_nan=False))).map(tuple),
            st.lists(st.builds(Endpoint, st.text(), st.integers(0, 9))).map(tuple),
            st.none() | st.text(),
        ),
        st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3),
    )
)
def test_what_is_dumped_loads_to_the_same(tmp_path_factory: pytest.TempPathFactory, config: Settings) -> None:
    """The dump of any configuration is TOML that loads to that configuration, for any texts."""
    file = tmp_path_factory.mktemp("dump") / "weft.toml"
    text = "\n".join(dump(config)) + "\n"
    tomllib.loads(text)
    file.write_text(text, encoding="utf-8", newline="")
    assert load(Settings, file, {}) == config
