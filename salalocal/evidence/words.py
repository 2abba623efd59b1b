"""Words and signs of a text in the form in which passages are compared.

Knows typography and scripts. White space, case, typographic quotes, ligatures and hyphens make no difference here.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher

# Scripts written without spaces, where every character counts as a word: Thai, Lao, Myanmar, Khmer, kana, Han, Hangul.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_HYPHENS = "\\-\u00ad\u2010\u2011"
_LETTERS = f"(?:[^\\W_{_UNSPACED}]|[\u0300-\u036f])+"
# A hyphen joins, at a line's end too: "well-known", "well-\nknown" and "wellknown" are one word.
WORD = re.compile(f"[{_UNSPACED}]|{_LETTERS}(?:[{_HYPHENS}](?:[ \t]*\n[ \t]*)?{_LETTERS})*")
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_JOINT = re.compile(f"[{_HYPHENS}\\s]+")
_WORD_HYPHEN = re.compile(f"(?<=[^\\W_])[{_HYPHENS}]\\s*(?=[^\\W_])")
_EMPHASIS = re.compile(r"(?<![\w*`])([*_`]{1,3})(?=\S)(.+?)(?<=\S)\1(?![\w*`])", re.DOTALL)
_SIGN_BEFORE = re.compile(r"(?<![\w-])[-+−$£€¥#@~]$")
_SIGN_BEHIND = re.compile(r"^[%‰°]")
_TYPOGRAPHY = str.maketrans(
    {**dict.fromkeys("“”„‟«»″「」『』", '"'), **dict.fromkeys("‘’‚‛′`´", "'"), **dict.fromkeys("–—‒―−", "-")}
)
_MISPRINT_SHARE = 0.6  # less alike, two words are different words
_MISPRINT_LETTERS = 48  # to compare longer stretches by letters takes long, and says little


def normal(word: str) -> str:
    """A match of WORD as it is compared."""
    if word.isascii() and "-" not in word:
        return word.lower()
    return unicodedata.normalize("NFKC", _JOINT.sub("", word)).casefold()


def words_of(text: str) -> list[str]:
    """The words of `text` as they are compared."""
    return [normal(match[0]) for match in WORD.finditer(text)]


def word_count(words: list[str]) -> float:
    """How many words these are to a reader: in scripts without spaces, two characters are about one."""
    return sum(0.5 if _UNSPACED_CHARACTER.match(word) else 1.0 for word in words)


def plain(text: str) -> str:
    """`text` with the signs between its words as they are compared, without white space."""
    text = _EMPHASIS.sub(r"\2", text)
    text = unicodedata.normalize("NFKC", _WORD_HYPHEN.sub("", text.translate(_TYPOGRAPHY)))
    return "".join(text.casefold().split())


def core(text: str) -> tuple[str, bool, bool]:
    """`text` from its first to its last word, with a sign that belongs to them; and whether there is one at either end.

    A minus or a currency before and a percent sign behind belong to a word; full stops and brackets do not.
    """
    matches = list(WORD.finditer(text))
    if not matches:
        return "", False, False
    start, end = matches[0].start(), matches[-1].end()
    signed_before = _SIGN_BEFORE.search(text, 0, start) is not None
    signed_behind = _SIGN_BEHIND.match(text[end : end + 1]) is not None
    return text[start - signed_before : end + signed_behind], signed_before, signed_behind


def agreeing_letters(mine: str, theirs: str) -> float:
    """How many letters of two different stretches agree: 0 unless they are nearly the same (a misprint)."""
    longer = max(len(mine), len(theirs))
    if not mine or not theirs or longer > _MISPRINT_LETTERS:
        return 0.0
    agreed = _agreeing(mine, theirs)
    return float(agreed) if agreed >= _MISPRINT_SHARE * longer else 0.0


def sign_likeness(mine: str, theirs: str) -> float:
    """How alike two texts of the same words are, by the signs between the words: 1.0 if those are the same too."""
    my_gaps, their_gaps = _gaps(mine), _gaps(theirs)
    letters = sum(map(len, words_of(mine)))
    agreed = letters + sum(map(_agreeing, my_gaps, their_gaps))
    return 2 * agreed / (2 * letters + sum(map(len, my_gaps)) + sum(map(len, their_gaps)))


def _gaps(text: str) -> list[str]:
    """What stands before, between and behind the words of `text`, as `plain` has it."""
    text = _EMPHASIS.sub(r"\2", text)
    edges = [0, *(edge for match in WORD.finditer(text) for edge in match.span()), len(text)]
    return [plain(text[begin:end]) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def _agreeing(mine: str, theirs: str) -> int:
    """How many characters of two short texts stand in common runs; of long ones, only whether they are the same."""
    if mine == theirs:
        return len(mine)
    if max(len(mine), len(theirs)) > _MISPRINT_LETTERS:
        return 0
    blocks = SequenceMatcher(None, mine, theirs, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks)
