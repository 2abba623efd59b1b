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
_LIKENESS_THRESHOLD = 0.7
_LIKENESS_LETTERS = 200


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
    if not mine or not theirs or max(len(mine), len(theirs)) > _LIKENESS_LETTERS:
        return 0.0
    ratio = likeness(mine, theirs)
    return ratio * min(len(mine), len(theirs)) if ratio >= _LIKENESS_THRESHOLD else 0.0


def likeness(mine: str, theirs: str) -> float:
    """Twice the number of characters in common runs, divided by all characters: 1.0 for equal texts."""
    return SequenceMatcher(None, mine, theirs, autojunk=False).ratio()
