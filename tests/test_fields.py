"""JSON that nobody vouches for: every way to be wrong gives one error that names the file or the field."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from salalocal.errors import BadConfig
from salalocal.fields import MAX_JSON_BYTES, Fields, read_json_object, shorten


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_reads_an_object(tmp_path: Path) -> None:
    assert read_json_object(write(tmp_path, '{"a": 1, "b": [true, null]}')) == {"a": 1, "b": [True, None]}


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    assert read_json_object(write(tmp_path, b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"a": 1} x', "not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
        ("[1]", "holds a list"),
        ("3", "holds an integer"),
        ("null", "holds null"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": {"b": [-Infinity]}}', "holds -Infinity"),
        ('{"a": 1, "a": 1}', "field 'a' is given twice"),
        ('{"x": {"b": 1, "b": 2}}', "field 'b' is given twice"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 text (byte 7)"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 text (byte 0)"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_config_is_refused(text: str | bytes, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadConfig, match=re.escape(problem)) as refused:
        read_json_object(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(BadConfig, match=re.escape(f"{path}: cannot be read")):
            read_json_object(path)


def test_size_is_looked_at_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: no byte of it is on disk
    with pytest.raises(BadConfig, match=f"at most {MAX_JSON_BYTES:,}"):
        read_json_object(path)


def test_a_repeated_key_among_many_is_found_in_linear_time(tmp_path: Path) -> None:
    path = write(tmp_path, "{" + ",".join(f'"{n}":0' for n in range(300_000)) + ',"299999":0}')
    started = time.perf_counter()
    with pytest.raises(BadConfig, match="'299999' is given twice"):
        read_json_object(path)
    assert time.perf_counter() - started < 20


def test_a_long_key_is_shortened(tmp_path: Path) -> None:
    key = "k" * 1_000_000
    with pytest.raises(BadConfig) as refused:
        read_json_object(write(tmp_path, f'{{"{key}":0,"{key}":0}}'))
    assert len(str(refused.value)) < 300


def deep(levels: int) -> list[object]:
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (-2.5, "-2.5"),
        (True, "True"),
        (None, "None"),
        ("a\x1b[31m\n", r"'a\x1b[31m\n'"),
        ("x" * 100, "'" + "x" * 57 + "'..."),
        (10**5000, "an integer of 16610 bits"),
        ({"a": 1}, "an object"),
        (deep(900), "a list"),
        (deep(5000), "a list"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_shorten(value: object, text: str) -> None:
    assert shorten(value) == text


def fields(**values: object) -> Fields:
    return Fields(values, "here.json", "part.")


def test_integers_in_range_are_taken() -> None:
    assert fields(n=3).integer("n", 3, 3) == 3
    assert fields().integer("n", 1, 9, default=7) == 7
    assert fields(n=None).integer("n", 1, 9, default=7) == 7


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is missing"),
        (2, "is 2, allowed is 3 to 9"),
        (10, "is 10"),
        (-(10**400), "is an integer of 1329 bits"),
        (3.0, "is a number, an integer is needed"),
        (True, "is true/false, an integer is needed"),
        ("4", "is a string, an integer is needed"),
        ([4], "is a list"),
        ({}, "is an object"),
    ],
    ids=repr,
)
def test_integers_out_of_order(value: object, problem: str) -> None:
    with pytest.raises(BadConfig, match=re.escape(f"here.json: field part.n {problem}")):
        fields(n=value).integer("n", 3, 9)


@pytest.mark.parametrize("value", [1e999, -1e999, 10**400, -1, 2.0000001, float("nan"), True, "1", [], None], ids=str)
def test_numbers_out_of_order(value: object) -> None:
    with pytest.raises(BadConfig, match=re.escape("here.json: field part.x")):
        fields(x=value).number("x", 0.0, 2.0)


def test_numbers_in_range_are_floats() -> None:
    assert isinstance(fields(x=2).number("x", 0.0, 2.0), float)
    assert fields().number("x", 0.0, 2.0, default=1.5) == 1.5


def test_booleans() -> None:
    assert fields(b=False).boolean("b", default=True) is False
    assert fields().boolean("b", default=True) is True
    for value in (0, 1, "true", [], None):
        with pytest.raises(BadConfig, match=re.escape("part.b")):
            fields(b=value).boolean("b")


def test_strings() -> None:
    assert fields(s="x").string("s", ("x", "y")) == "x"
    for value in ("z", 1, ["x"], None, deep(900)):
        with pytest.raises(BadConfig, match=re.escape("known are: x, y")) as refused:
            fields(s=value).string("s", ("x", "y"), default="q" if value is None else None)
        assert len(str(refused.value)) < 100


def test_lists_of_strings() -> None:
    assert fields(s=["x", ""]).strings("s") == ["x", ""]
    for value in ("x", ["x", 1], {"x": 1}, None, 3):
        with pytest.raises(BadConfig, match=re.escape("part.s")):
            fields(s=value).strings("s")


def test_token_ids() -> None:
    assert fields().token_ids("t", 10) == ()
    assert fields(t=0).token_ids("t", 10) == (0,)
    assert fields(t=[9, 2]).token_ids("t", 10) == (9, 2)
    for value in (10, -1, [3, 10], 1.0, True, "2", {"a": 1}, [[1]], deep(900)):
        with pytest.raises(BadConfig, match=re.escape("token ids are 0 to 9")):
            fields(t=value).token_ids("t", 10)


def test_sections_and_unknown_fields_carry_their_prefix() -> None:
    outer = Fields({"part": {"a": 1, "b": 2}, "z": 0}, "here.json")
    inner = outer.section("part")
    assert inner is not None
    assert inner.integer("a", 0, 9) == 1
    assert inner.unknown() == ["part.b"]
    assert outer.unknown() == ["z"]
    assert outer.section("none") is None
    with pytest.raises(BadConfig, match="field z is an integer, an object is needed"):
        outer.section("z")
    with pytest.raises(BadConfig, match=re.escape("field part.b is 2, allowed is 5 to 9")):
        inner.integer("b", 5, 9)


def test_json_survives_a_round_trip_of_every_python_type(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, "x", None, True, {"b": []}]}
    assert read_json_object(write(tmp_path, json.dumps(value))) == value
