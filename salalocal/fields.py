"""Reads JSON that nobody vouches for: size, nesting, NaN and types are checked, errors name the field.

Knows nothing about models; `config.py` says which fields there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from salalocal.errors import BadConfig

MAX_JSON_BYTES = 4 * 1024 * 1024


def read_json_object(path: Path) -> dict[str, object]:
    """Reads one JSON object from `path`.

    Raises:
        BadConfig: unreadable, larger than MAX_JSON_BYTES, not UTF-8, not one JSON object, nested too deeply,
            with NaN or Infinity, or with the same key twice in one object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise BadConfig(f"{path}: {size:,} bytes; at most {MAX_JSON_BYTES:,} are read as a config")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadConfig(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path}: not UTF-8 text (byte {error.start})") from error
    try:
        value = json.loads(text, parse_constant=_reject_constant, object_pairs_hook=_reject_repeated_keys)
    except RecursionError as error:
        raise BadConfig(f"{path}: nested too deeply to be a config") from error
    except BadConfig as error:
        raise BadConfig(f"{path}: {error}") from None
    except ValueError as error:
        raise BadConfig(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadConfig(f"{path}: holds {_kind(value)}, a JSON object is needed")
    return value


def _reject_constant(name: str) -> NoReturn:
    raise BadConfig(f"holds {name}, which is not a number of JSON")


def _reject_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise BadConfig(f"field {shorten(key)} is given twice")
        result[key] = value
    return result


class Fields:
    """Typed, range-checked access to the fields of one JSON object.

    Args:
        values: the object.
        where: what errors name it, for example a path.
        prefix: put before field names in errors, for example "sparse_config.".
    """

    def __init__(self, values: Mapping[str, object], where: str, prefix: str = "") -> None:
        self._values = values
        self.where = where
        self._prefix = prefix
        self.seen: set[str] = set()

    def fail(self, name: str, problem: str) -> NoReturn:
        """Raises BadConfig naming the field."""
        raise BadConfig(f"{self.where}: field {self._prefix}{name} {problem}")

    def raw(self, name: str) -> object:
        """The value as parsed, None where the field is absent or null."""
        self.seen.add(name)
        return self._values.get(name)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """An integer with low <= value <= high; `default` where absent."""
        value = self._required(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(name, f"is {_kind(value)}, an integer is needed")
        if not low <= value <= high:
            self.fail(name, f"is {shorten(value)}, allowed is {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number with low <= value <= high; `default` where absent."""
        value = self._required(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(name, f"is {_kind(value)}, a number is needed")
        # An integer too large for a float fails the range test like any other.
        if not low <= value <= high or not math.isfinite(value):
            self.fail(name, f"is {shorten(value)}, allowed is {low:g} to {high:g}")
        return float(value)

    def boolean(self, name: str, default: bool | None = None) -> bool:
        """true or false; `default` where absent."""
        value = self._required(name, default)
        if not isinstance(value, bool):
            self.fail(name, f"is {_kind(value)}, true or false is needed")
        return value

    def string(self, name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        """One of `allowed`; `default` where absent."""
        value = self._required(name, default)
        if not isinstance(value, str) or value not in allowed:
            self.fail(name, f"is {shorten(value)}, known are: {', '.join(allowed)}")
        return value

    def strings(self, name: str) -> list[str]:
        """A list of strings; must be present."""
        value = self._required(name, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(name, "must be a list of strings")
        return [str(item) for item in value]

    def token_ids(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """A token id, a list of them, or nothing."""
        value = self.raw(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for item in ids:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab_size:
                self.fail(name, f"holds {shorten(item)}, token ids are 0 to {vocab_size - 1}")
        return tuple(ids)

    def section(self, name: str) -> Fields | None:
        """A nested object, None where absent or null."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(name, f"is {_kind(value)}, an object is needed")
        return Fields(value, self.where, f"{self._prefix}{name}.")

    def unknown(self) -> list[str]:
        """Names of fields nobody asked for, with their prefix."""
        return [self._prefix + name for name in sorted(set(self._values) - self.seen)]

    def _required(self, name: str, default: object) -> object:
        value = self.raw(name)
        if value is not None:
            return value
        if default is None:
            self.fail(name, "is missing")
        return default


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true/false", int: "an integer"}
    return "null" if value is None else names.get(type(value), "a number")


def shorten(value: object) -> str:
    """A value of unknown size in a few words on one line, for messages."""
    if isinstance(value, dict | list):
        return _kind(value)
    if isinstance(value, int) and abs(value) > 10**20:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str) and len(value) > 57:
        return repr(value[:57]) + "..."
    return repr(value)
