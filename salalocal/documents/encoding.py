"""Bytes to text: which encoding, or a refusal. Never drops or replaces a byte.

Knows byte-order marks, the UTF family and the guesses of charset-normalizer. Knows no files.
"""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

from salalocal.errors import BadDocument

# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Tab, line feed, form feed, carriage return, backspace and escape (terminal recordings) occur in text.
_CONTROLS = re.compile("[\x00-\x07\x0b\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f]")
_ASCII = bytes(range(128))
_NOT_TEXT = "is binary, not text"
_GUESS_BYTES = 1 << 20
_DOCUMENT_CODECS = ("iso8859", "cp", "gb", "big5", "euc_", "shift_jis", "johab", "koi8", "mac-", "mac_", "tis-620")


def decode(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """The text of `data`, with line ends as `\\n`, and the name of the encoding that it is in.

    `declared` is an encoding that the file itself names (HTML's `<meta charset>`). It is used if every byte
    fits it, unless the bytes are UTF-8: what is UTF-8 by accident is rarer than what is declared wrongly.
    Raises BadDocument if the bytes are not text, or in no encoding that can be told.
    """
    text, name = _decode(data, declared)
    controls = len(_CONTROLS.findall(text, 0, 1 << 20))
    if "\0" in text or controls * 50 > min(len(text), 1 << 20):
        raise BadDocument(_NOT_TEXT)
    return text.replace("\r\n", "\n").replace("\r", "\n"), name


def _decode(data: bytes, declared: str | None) -> tuple[str, str]:
    for mark, name in _MARKS:
        if data.startswith(mark):
            text = _strict(data[len(mark) :], name)
            if text is None:
                raise BadDocument(f"starts with the mark of {name.upper()} but holds bytes that are not {name}")
            return text, name
    if b"\0" in data:
        return _decode_wide(data)
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        first_bad = error.start
    usable = _usable(declared)
    if usable is not None and (text := _strict(data, usable)) is not None:
        return text, usable
    _refuse_damaged_utf8(data, first_bad)
    return _decode_legacy(data)


def _usable(declared: str | None) -> str | None:
    """The codec for a declared encoding, if it is one that documents are written in (unlike unicode_escape)."""
    try:
        name = codecs.lookup(declared or "").name
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        return None
    if name in ("ascii", "iso8859-1"):  # browsers take these for what is meant
        return "cp1252"
    return name if name.startswith(_DOCUMENT_CODECS) else None


def _strict(data: bytes, name: str) -> str | None:
    """`data` as text if every byte fits the text encoding `name`, else None."""
    try:
        return data.decode(name)
    except (UnicodeDecodeError, LookupError):  # LookupError: no such encoding, or not one of text
        return None


def _decode_wide(data: bytes) -> tuple[str, str]:
    """UTF-16 or UTF-32 without a mark, told by where its NUL bytes stand; anything else with NULs is binary."""
    sample = data[: 1 << 16]
    zeros = [sample[i::4].count(0) / max(1, len(sample[i::4])) for i in range(4)]
    candidates = (
        ("utf-32-le", min(zeros[2:]) > 0.95),
        ("utf-32-be", min(zeros[:2]) > 0.95),
        ("utf-16-le", max(zeros[0], zeros[2]) < 0.02 and min(zeros[1], zeros[3]) > 0.3),
        ("utf-16-be", max(zeros[1], zeros[3]) < 0.02 and min(zeros[0], zeros[2]) > 0.3),
    )
    for name, plausible in candidates:
        if plausible and (text := _strict(data, name)) is not None:
            return text, name
    raise BadDocument(_NOT_TEXT)


def _refuse_damaged_utf8(data: bytes, first_bad: int) -> None:
    """Refuses UTF-8 with a few bad bytes: a single-byte encoding would read all its other letters wrongly."""
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = sum(map(len, re.findall("[^\x00-\x7f\ufffd]+", text)))
    if good > 3 * bad:
        raise BadDocument(
            f"is UTF-8 but damaged: {bad:,} bad byte sequence{'s' * (bad > 1)}, the first at byte {first_bad:,}; "
            "save it again as UTF-8"
        )


def _decode_legacy(data: bytes) -> tuple[str, str]:
    sample = data[:_GUESS_BYTES]
    if len(data) > len(sample):
        sample = sample[: sample.rfind(b"\n") + 1] or sample  # a character cut in two would mislead the guess
    matches = from_bytes(sample)
    best = matches.best()
    guesses = [] if best is None else [best.encoding]
    # charset-normalizer tells Western texts as Central European ones: where both fit equally well, and
    # most letters are plain ASCII, the far commoner cp1252 is taken.
    western = next((match for match in matches if "cp1252" in match.could_be_from_charset), None)
    mostly_ascii = len(sample.translate(None, _ASCII)) * 2 < len(sample)
    if best is not None and western is not None and mostly_ascii:
        better_elsewhere = best.encoding.startswith("cp125") and best.coherence > western.coherence + 0.01
        if not better_elsewhere:
            guesses.insert(0, "cp1252")
    guesses += [match.encoding for match in matches]
    for name in guesses:
        if (text := _strict(data, name)) is not None:
            return text, name
    raise BadDocument("is in an encoding that cannot be told, or is not text; save it as UTF-8")
