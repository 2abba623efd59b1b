"""Finds sentences in real text that a question can be asked about, with the span that answers it.

A passage is a key (words of the question) and a span of the text (the answer, always verbatim). How the key becomes a
question is `reading.py`; this module only knows text and offsets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from tokenizers import Encoding

from salalocal.training.lexicon import word_lists

MAX_ANSWER_TOKENS = 40
CHARACTERS_PER_PASSAGE = 350
"""At most one passage for so many characters, so that the table stays a fraction of the corpus."""


class Kind(IntEnum):
    """What is asked: MENTION quotes a sentence, CONTINUE goes on with it, ASK is a whole question, DEFINED and VALUE
    are code, LABEL is the text after `label:`."""

    MENTION = 0
    CONTINUE = 1
    ASK = 2
    DEFINED = 3
    VALUE = 4
    LABEL = 5


@dataclass(frozen=True)
class Passage:
    """`key` names what is asked; the answer is `text[start:end]` (character offsets)."""

    kind: Kind
    key: str
    start: int
    end: int


_VERBS = dict(pair.split(":") for pair in word_lists()["third person"])
_PAST = dict(pair.split(":") for pair in word_lists()["past tense"])
_PRONOUNS = frozenset(word_lists()["no subject"])
_SENTENCE = re.compile(r"[A-Z][^\n.!?]{18,260}(?:\.(?=[A-Za-z0-9_(])[^\n.!?]*)*[.!?](?=\s|$)")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Co|Ltd|Inc|Prof|Capt|Col|Gen|Rev|Hon|Esq|No|Fig|vs|etc|[A-Z])\.$")
"""What a sentence does not end with; where one seems to, it goes on."""
_IS = re.compile(
    r"^(.{3,60}?) (is|are|was|were) ((?:an?|the|one|used|not|only|always|called|available|\w+ed)\b.+)[.!?]$"
)
_THIRD = re.compile(r"^(.{3,60}?) (" + "|".join(_VERBS) + r") (.+)[.!?]$")
_DID = re.compile(
    r"^(?:And |But |Then |So )?(.{3,40}?) (" + "|".join(_PAST) + r")((?: unto| to) [A-Za-z ]{3,24})?,? (.+)[.!?]$"
)
_MODAL = re.compile(r"^(.{3,60}?) (can|must|should|will|may|cannot) ((?!not\b).+)[.!?]$")
_WHY = re.compile(r"^(.{12,110}?),? (because .+)[.!?]$")
_IF = re.compile(r"^(If|When) ([^,]{8,90}), (.+)[.!?]$")
_DEFINITION = re.compile(r"^ *((?:async )?def|class) (\w+).*$", re.MULTILINE)
_CONSTANT = re.compile(r"^ *([A-Z][A-Z0-9_]{3,40}) *(?::[^=\n]+)?= *([^\n]{1,60}?)(?:  #.*)?$", re.MULTILINE)
_FIELD = re.compile(r"^([A-Z][^:\n]{6,60}): ([^\n]{2,120}?)(?:;|$)", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]+")


def find_passages(text: str, rng: np.random.Generator) -> Iterator[Passage]:
    """Passages of `text` in the order of their answers, each with a key that occurs once in the text."""
    counts = Counter(word.lower() for word in _WORD.findall(text))
    found: list[Passage] = []
    for match in _SENTENCE.finditer(text):
        found.extend(_from_sentence(match, counts, rng))
    for match in _DEFINITION.finditer(text):
        name = match[2]
        if len(name) > 3 and len(re.findall(rf"(?:def|class) {name}\b", text)) == 1:
            start = match.start() + len(match[0]) - len(match[0].lstrip())
            found.append(Passage(Kind.DEFINED, name, start, match.end()))
    found.extend(
        Passage(Kind.VALUE, m[1], m.start(2), m.end(2))
        for m in _CONSTANT.finditer(text)
        if len(re.findall(rf"\b{m[1]} *(?::[^=\n]+)?= ", text)) == 1
    )
    labels = Counter(m[1] for m in _FIELD.finditer(text))
    found.extend(Passage(Kind.LABEL, m[1], m.start(2), m.end(2)) for m in _FIELD.finditer(text) if labels[m[1]] == 1)
    keep = max(1, len(text) // CHARACTERS_PER_PASSAGE)
    if len(found) > keep:
        weights = np.array([4.0 if p.kind in (Kind.ASK, Kind.VALUE, Kind.DEFINED) else 1.0 for p in found])
        chosen = rng.choice(len(found), keep, replace=False, p=weights / weights.sum())
        found = [found[i] for i in chosen]
    yield from sorted(found, key=lambda p: (p.start, p.end))


def _from_sentence(match: re.Match[str], counts: Counter[str], rng: np.random.Generator) -> Iterator[Passage]:
    sentence, start = match[0], match.start()
    if ABBREVIATION.search(sentence):
        return
    words = [(m[0], m.start()) for m in _WORD.finditer(sentence)]
    rare = [word for word, at in words if counts[word.lower()] == 1 and len(word) >= 5 and at > 0]
    asked = list(_questions(sentence, counts))
    if asked:
        question, low, high = asked[int(rng.integers(len(asked)))]
        yield Passage(Kind.ASK, question, start + low, start + high)
    if rare and rng.random() < 0.5:
        key = rare[int(rng.integers(len(rare)))]
        if rng.random() < 0.5:
            at = sentence.index(key)
            before = sentence[:at].split(" ")[-3:]
            after = sentence[at:].rstrip(".!?").split(" ")[:3]
            key = " ".join([*before[:-1], before[-1] + after[0], *after[1:]]).strip(" ,;:")
        yield Passage(Kind.MENTION, key, start, start + len(sentence))
    split = [m.start() for m in re.finditer(" ", sentence)]
    if len(split) > 8 and any(counts[w.lower()] <= 2 for w, at in words if at < split[5]) and rng.random() < 0.3:
        cut = split[int(rng.integers(4, len(split) - 3))]
        yield Passage(Kind.CONTINUE, sentence[:cut], start + cut + 1, start + len(sentence))


def _questions(sentence: str, counts: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """(question, answer start, answer end) by rules of English word order; offsets within the sentence."""

    def is_particular(phrase: str) -> bool:
        words = _WORD.findall(phrase)
        return (
            bool(words)
            and words[0].lower() not in _PRONOUNS
            and len(words) <= 8
            and any(counts[word.lower()] <= 3 for word in words)
        )

    def mid(phrase: str) -> str:
        first = phrase.split(" ")[0]
        return phrase[0].lower() + phrase[1:] if first in ("The", "A", "An", "Each", "Every") else phrase

    if (m := _IS.match(sentence)) and is_particular(m[1]):
        yield f"What {m[2]} {mid(m[1])}?", m.start(3), m.end(3)
    if (m := _THIRD.match(sentence)) and is_particular(m[1]):
        yield f"What does {mid(m[1])} {_VERBS[m[2]]}?", m.start(3), m.end(3)
    if (m := _DID.match(sentence)) and is_particular(m[1]):
        yield f"What did {mid(m[1])} {_PAST[m[2]]}{m[3] or ''}?", m.start(4), m.end(4)
    if (m := _MODAL.match(sentence)) and is_particular(m[1]):
        yield (
            f"What {'can' if m[2] == 'cannot' else m[2]} {mid(m[1])} do?",
            m.start(2 if m[2] == "cannot" else 3),
            m.end(3),
        )
    if m := _WHY.match(sentence):
        yield f"Why is it that {m[1][0].lower() + m[1][1:]}?", m.start(2), m.end(2)
    if m := _IF.match(sentence):
        yield f"What happens {m[1].lower()} {m[2]}?", m.start(3), m.end(3)


@dataclass
class PassageTable:
    """Passages of a whole corpus in token positions, as arrays for one `.npz`."""

    kinds: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.kinds)

    def extend(self, passages: Iterable[Passage], encoding: Encoding, first_token: int) -> None:
        """Add the passages of one text whose first token stands at `first_token` of the corpus.

        A passage is dropped where token edges do not fall on the answer's edges or the answer is too long.
        """
        passages = list(passages)
        if not passages:
            return
        offsets = np.array(encoding.offsets)
        lows = np.searchsorted(offsets[:, 1], [p.start for p in passages], side="right")
        highs = np.searchsorted(offsets[:, 0], [p.end for p in passages], side="left")
        for passage, low, high in zip(passages, lows.tolist(), highs.tolist(), strict=True):
            exact = offsets[high - 1, 1] == passage.end and offsets[low, 0] in (passage.start, passage.start - 1)
            if exact and 0 < high - low <= MAX_ANSWER_TOKENS and passage.key.strip():
                self.kinds.append(int(passage.kind))
                self.keys.append(passage.key.encode())
                self.starts.append(first_token + low)
                self.ends.append(first_token + high)

    def arrays(self) -> dict[str, np.ndarray]:
        """passage_kinds [n] uint8, passage_starts and passage_ends [n] int64 (tokens, sorted by start),
        passage_keys [bytes] uint8 with key i at passage_key_starts[i : i + 2]."""
        return {
            "passage_kinds": np.array(self.kinds, np.uint8),
            "passage_starts": np.array(self.starts, np.int64),
            "passage_ends": np.array(self.ends, np.int64),
            "passage_keys": np.frombuffer(b"".join(self.keys), np.uint8),
            "passage_key_starts": np.cumsum([0, *map(len, self.keys)]).astype(np.int64),
        }
