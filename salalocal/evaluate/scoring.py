"""When an answer counts, and how sure a share is. Knows texts and counts only."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

_QUOTES = str.maketrans({**dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‘’‚‛`´", "'")})
_NOT = r"(?:\bnot|n't|\bnowhere)"
_TEXT = r"(?:text|documents?|passages?|context|files?|book|sources?)"
_TOLD = (
    r"(?:mention|mentioned|stated?|said|say|given|give|found|contained|specified|specify|provided|described?|tell|know)"
)
_ABSENT = re.compile(
    rf"{_NOT} (?:\w+ )?{_TOLD}\b|{_NOT} (?:\w+ )?in (?:\w+ )?{_TEXT}\b"
    r"|\b(?:no|not enough) (?:information|mention|answer)\b|\b(?:cannot|can't|unable to) (?:find|answer|say|tell)\b"
)
_ARTICLE = re.compile(r"^(?:the|an?) (?=\S)")
_BEFORE_NUMBER = re.compile(r"[-#][^\w\s]?\d")
_ABSENT_WORDS = 30
"""A longer answer says something, whatever it says besides."""


def normalize(text: str) -> str:
    """`text` as answers are compared: case, white space and punctuation at the ends make no difference.

    A sign, a currency and a percent sign belong to the number beside them and stay.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).translate(_QUOTES).casefold().split())
    start, end = 0, len(text)
    while start < end and _is_punctuation(text[start]) and not _BEFORE_NUMBER.match(text, start):
        start += 1
    while end > start and _is_punctuation(text[end - 1]) and text[end - 1] not in "%#":
        end -= 1
    # What is nothing but signs is compared as it is.
    return text[start:end].strip() or text


def _is_punctuation(char: str) -> bool:
    return char.isspace() or unicodedata.category(char).startswith("P")


def is_any(answer: str, accepted: Iterable[str]) -> bool:
    """Whether `answer` is one of `accepted`, once normalized; an article in front makes no difference."""
    found = _ARTICLE.sub("", normalize(answer))
    return any(found == _ARTICLE.sub("", normalize(one)) for one in accepted)


def contains_any(answer: str, accepted: Iterable[str]) -> bool:
    """Whether one of `accepted` stands in `answer` as whole words."""
    found = normalize(answer)
    return any(re.search(rf"(?<!\w){re.escape(normalize(one))}(?!\w)", found) is not None for one in accepted)


def says_absent(answer: str) -> bool:
    """Whether an answer says that the text does not hold one: "That is not in the text.", "The text doesn't say."."""
    found = normalize(answer)
    return len(found.split()) <= _ABSENT_WORDS and _ABSENT.search(found) is not None


def match_all(answer: str, references: Sequence[str]) -> float:
    """RULER's string match for most tasks: the share of `references` that stand in `answer`, case ignored."""
    found = answer.casefold()
    return sum(reference.casefold() in found for reference in references) / len(references)


def match_part(answer: str, references: Sequence[str]) -> float:
    """RULER's string match for questions: 1.0 where any of `references` stands in `answer`, case ignored."""
    found = answer.casefold()
    return float(any(reference.casefold() in found for reference in references))


def wilson(right: int, asked: int) -> tuple[float, float]:
    """95 % interval of the share behind `right` of `asked` (Wilson 1927); (0, 1) where none were asked."""
    if not asked:
        return 0.0, 1.0
    z = 1.959964
    share = right / asked
    middle = share + z * z / (2 * asked)
    spread = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
