"""Configuration: defaults in the components' dataclasses, overridden by an optional TOML file, overridden by ``WEFT_*`` variables.

A component's frozen dataclass is its schema: an unknown key or a value of another type is an error with file, line and the nearest
known key. ``WEFT_BUS__KIND=kafka`` sets ``kind`` in ``[bus]``: one underscore belongs to a name, two separate levels.
"""

import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

PREFIX = "WEFT_"

# Not settings: the broker, data and downloads of tests, and the supervisor of a service.
_NOT_SETTINGS = ("WEFT_TEST_", "WEFT_SHARED_", "WEFT_CACHE", "WEFT_SUPERVISOR")

# Shown by ``dump`` and errors in place of a secret.
MASK = "********"

T = TypeVar("T")


def secret(default: str = "") -> Any:
    """Return a field whose value is a secret: not in ``repr``, and masked in printed settings and errors."""
    return dataclasses.field(default=default, repr=False, metadata={"secret": True})


def _is_secret(schema: Any, name: str) -> bool:
    return any(field.name == name and field.metadata.get("secret") for field in dataclasses.fields(schema))


def load(schema: type[T], file: Path | None, environment: Mapping[str, str], others: tuple[str, ...] = ()) -> T:
    """Return the configuration as an instance of the dataclass ``schema``; sections named in ``others`` are ignored.

    Raises:
        ConfigError: the file cannot be read or parsed, a key is unknown, or a value does not fit its field.
    """
    tree: dict[str, Any] = {}
    lines: dict[tuple[str, ...], int] = {}
    if file is not None:
        tree, lines = _read(file)

    tree = {key: value for key, value in tree.items() if key not in others}

    def where(path: tuple[str, ...]) -> str:
        if path in lines:
            return f"{file}:{lines[path]}"
        return str(file) if file is not None else PREFIX + "__".join(path).upper()

    result = _build(schema, tree, (), where)
    for name, text in sorted(environment.items()):
        if name.startswith(PREFIX) and not name.startswith(_NOT_SETTINGS):
            path = tuple(name.removeprefix(PREFIX).lower().split("__"))
            if path[0] in others:
                continue
            result = _override(result, path, text, name)
    return result


def dump(config: Any, prefix: str = "") -> list[str]:
    """Return the effective configuration as TOML lines; the values of ``secret`` fields are masked."""
    lines, tables = [], []
    for field, value in _shown(config):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            tables += ["", f"[{name}]", *dump(value, f"{name}.")]
        elif value is not None:
            lines.append(f"{field.name} = {_toml(value)}")
    return lines + tables


def _shown(config: Any) -> list[tuple[Any, Any]]:
    """Return the fields of a dataclass with the values that may be printed."""
    pairs = [(field, getattr(config, field.name)) for field in dataclasses.fields(config)]
    return [(field, MASK if value and field.metadata.get("secret") else value) for field, value in pairs]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_quoted(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if dataclasses.is_dataclass(value):
        items = (f"{field.name} = {_toml(item)}" for field, item in _shown(value) if item is not None)
        return "{ " + ", ".join(items) + " }"
    return str(value) if isinstance(value, int | float) else _quoted(str(value))


def _quoted(text: str) -> str:
    """Return a basic string of TOML, which differs from JSON in one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(file: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(str(file), "is not UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read ({error.strerror})", "name an existing file with --config") from None
    try:
        return tomllib.loads(text), _lines(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(file), f"is not TOML: {error}", "correct that line") from None


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of each key and table, approximately: tomllib reports none."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}", line):
            table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
            lines.setdefault(table, number)
        elif key := re.match(r"\s*([\w\-.\"']+)\s*=", line):
            lines.setdefault((*table, *(part.strip("\"'") for part in key[1].split("."))), number)
    return lines


def _build(schema: type[T], tree: Mapping[str, Any], path: tuple[str, ...], where: Any) -> T:
    hints = typing.get_type_hints(schema)
    names = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        here = (*path, key)
        if key not in names:
            raise ConfigError(where(here), f"unknown key {'.'.join(here)!r}", _did_you_mean(key, names))
        values[key] = _convert(hints[key], value, here, where, masked=_is_secret(schema, key))
    try:
        return schema(**values)
    except ValueError as error:
        raise ConfigError(where(path), str(error), "correct the value") from None


def _convert(hint: Any, value: Any, path: tuple[str, ...], where: Any, *, masked: bool = False) -> Any:
    origin: Any = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(where(path), f"{'.'.join(path)!r} is a table", f"write it as [{'.'.join(path)}]")
        return _build(hint, value, path, where)
    if origin in (types.UnionType, typing.Union):
        for option in typing.get_args(hint):
            if option is not type(None):
                return _convert(option, value, path, where, masked=masked)
    if origin is tuple and isinstance(value, list):
        inner = typing.get_args(hint)
        if inner[-1] is Ellipsis:
            return tuple(_convert(inner[0], item, path, where) for item in value)
        if len(inner) == len(value):
            return tuple(_convert(kind, item, path, where) for kind, item in zip(inner, value, strict=True))
    if origin in (dict, Mapping):
        if isinstance(value, dict):
            inner: Any = typing.get_args(hint)
            return {key: _convert(inner[1], item, (*path, key), where) for key, item in value.items()}
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif hint is Any or (isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    kind = getattr(hint, "__name__", str(hint))
    raise ConfigError(
        where(path),
        f"{'.'.join(path)!r} is {MASK if masked else _described(value)}",
        f"write {'a list' if origin is tuple else f'a value of type {kind}'}",
    )


def _described(value: Any) -> str:
    """Return a wrong value as an error shows it; a table is not shown, since it may hold secrets."""
    if isinstance(value, dict):
        return "a table"
    return "a list of tables" if isinstance(value, list) and any(isinstance(item, dict) for item in value) else repr(value)


def _override(config: Any, path: tuple[str, ...], text: str, name: str) -> Any:
    first = path[0]
    names = [field.name for field in dataclasses.fields(config)]
    if first not in names:
        raise ConfigError(name, "is not a setting", _did_you_mean(first, names))
    if len(path) > 1:
        inner = getattr(config, first)
        if not dataclasses.is_dataclass(inner):
            raise ConfigError(name, f"{first!r} has no sub-settings", "see 'weft check --dump'")
        return dataclasses.replace(config, **{first: _override(inner, path[1:], text, name)})
    hint = typing.get_type_hints(type(config))[first]
    value = _convert(hint, _parsed(hint, text), path, lambda _path: name, masked=_is_secret(config, first))
    try:
        return dataclasses.replace(config, **{first: value})
    except ValueError as error:
        raise ConfigError(name, str(error), "correct the value") from None


def _parsed(hint: Any, text: str) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind not in (type(None), Ellipsis)]
    if typing.get_origin(hint) is tuple:
        return [_parsed(kinds[0], part.strip()) for part in text.split(",") if part.strip()]
    if hint is str or kinds == [str]:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _did_you_mean(key: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key, names, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}"
