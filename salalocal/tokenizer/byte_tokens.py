"""Which bytes each token stands for, so that text can be put together byte by byte.

Knows the two ways in which BPE vocabularies cover every byte: byte-level (GPT-2's printable alphabet) and
byte fallback (SentencePiece's <0x00>..<0xFF> beside U+2581 for a space). Decoding by bytes is exact for any
run of ids, where a decoder that strips or cleans up is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

SPACE_MARK = "\u2581"
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
REPLACEMENT_BYTES = "\ufffd".encode()
CONTINUING_BYTES = bytes(range(0x80, 0xC0))
"""Those that begin no character in UTF-8."""


def byte_alphabet() -> dict[str, int]:
    """GPT-2's character -> byte: printable Latin-1 stands for itself, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def token_bytes(vocab: Mapping[str, int], added: Mapping[str, int], byte_level: bool) -> list[bytes]:
    """The bytes of every id, from 0 to the largest; ids without a token stand for U+FFFD.

    `vocab` is the model's own, `added` the added tokens, which stand for their literal text.
    """
    size = 1 + max((*vocab.values(), *added.values()), default=-1)
    table = [REPLACEMENT_BYTES] * size
    alphabet = byte_alphabet()
    for token, index in vocab.items():
        if byte_level and all(char in alphabet for char in token):
            table[index] = bytes(alphabet[char] for char in token)
        elif not byte_level and (match := _FALLBACK.fullmatch(token)):
            table[index] = bytes([int(match[1], 16)])
        else:
            table[index] = token.replace(SPACE_MARK, " ").encode("utf-8", "replace")
    for token, index in added.items():
        table[index] = token.encode("utf-8", "replace")
    return table


def missing_bytes(vocab: Iterable[str], byte_level: bool) -> frozenset[int]:
    """The bytes that no token of the vocabulary can spell (SmolLM2 lacks six control characters)."""
    known = set(vocab)
    if byte_level:
        return frozenset(byte for char, byte in byte_alphabet().items() if char not in known)
    return frozenset(byte for byte in range(256) if f"<0x{byte:02X}>" not in known)
