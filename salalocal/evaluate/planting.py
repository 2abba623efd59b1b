"""Facts planted in made-up prose: which facts share a text, where each of them stands, in characters and in tokens.

Knows tokenizers and no network. A text is a `Document`, laid out in a prompt as any other document is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from salalocal.documents import Document, SourceFile, Span
from salalocal.errors import InvalidRequest
from salalocal.evaluate.fact_rows import FactRow
from salalocal.evaluate.filler import Filler
from salalocal.evaluate.scoring import normalize
from salalocal.tokenizer import Message, Tokenizer

FILE_NAME = "chronicle.txt"
FACT_SHARE = 0.1
"""Of a text at most this share is facts: more of them, and it would no longer be a text that they are hidden in."""

_BETWEEN = "\n\n"
_ROOM_TOKENS = 160
_CLOSING_TOKENS = 60
_CLOSING_TRIES = 60
_CLOSINGS = ("It rained.", "Nobody came.", "The day went by.", "And so the week came to its end.")
_SENTENCE_ENDS = (".", "!", "?", '."', '!"', '?"', ".”", "!”", "?”", ".'", ".)")


@dataclass(frozen=True)
class PlantedFact:
    """Where a fact stands in the prompt: tokens [start, end), and how deep from 0 to 1."""

    start: int
    end: int
    depth: float


@dataclass(frozen=True)
class Planted:
    """A text with facts in it.

    Attributes:
        document: the text.
        tokens: of a prompt about it, up to where the question begins.
        facts: by their words.
    """

    document: Document
    tokens: int
    facts: dict[str, PlantedFact]


@dataclass
class Batch:
    """Questions that share one reading."""

    rows: list[FactRow] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)
    questions: dict[str, str | None] = field(default_factory=dict)

    def take(self, row: FactRow, tokens: int, capacity: int) -> bool:
        """Takes the row in, unless its fact has no room here or its question has another answer here."""
        question = normalize(row.question)
        if self.questions.get(question, row.fact) != row.fact:
            return False
        if row.fact is not None and row.fact not in self.facts:
            if self.facts and sum(self.facts.values()) + tokens > capacity:
                return False
            self.facts[row.fact] = tokens
        self.questions[question] = row.fact
        self.rows.append(row)
        return True


def make_batches(rows: Sequence[FactRow], length: int, tokenizer: Tokenizer, seed: int) -> list[Batch]:
    """Divides the rows among as few readings of `length` tokens as FACT_SHARE allows, in drawn order.

    Raises:
        InvalidRequest: a fact is longer than half of the text.
    """
    order = list(rows)
    Random(f"order {seed} {length}").shuffle(order)
    batches: list[Batch] = []
    for row in sorted(order, key=lambda row: row.fact is None):
        tokens = 0 if row.fact is None else len(tokenizer.encode_text(f" {row.fact}"))
        if tokens > length // 2:
            raise InvalidRequest(
                f"the fact of line {row.line} is {tokens:,} tokens long, too long for a text of {length:,}; "
                "shorten it or give a greater length"
            )
        # Those without a fact take no room: they go where the fewest questions are.
        candidates = batches if row.fact is not None else sorted(batches, key=lambda batch: len(batch.rows))
        if not any(batch.take(row, tokens, int(FACT_SHARE * length)) for batch in candidates):
            batches.append(Batch())
            batches[-1].take(row, tokens, length)
    return batches


def plant(facts: Sequence[str], length: int, tokenizer: Tokenizer, seed: str) -> Planted:
    """A made-up text that makes `length` tokens of a prompt, up to the question, with each fact once in it.

    Every fact stands at a drawn depth between two sentences of the text, never beside another fact. One that is no
    sentence (a line of code) gets a line of its own.

    Raises:
        InvalidRequest: the text is too short for what has to be in it.
    """
    overhead = _prompt_tokens(_document(["."]), tokenizer) - len(tokenizer.encode_text(".\n\n"))
    needed = sum(len(tokenizer.encode_text(f" {fact}\n")) for fact in facts)
    room = length - overhead - needed - _ROOM_TOKENS
    filler, paragraphs, used = Filler(seed), list[list[str]](), 0
    while used < room:
        paragraphs.append(filler.paragraph())
        used += _paragraph_tokens(" ".join(paragraphs[-1]), tokenizer)
    if len(paragraphs) > 1 and used > room:
        paragraphs.pop()
    gaps = [(row, at) for row, sentences in enumerate(paragraphs) for at in range(len(sentences))]
    if len(gaps) <= len(facts):
        raise InvalidRequest(
            f"{len(facts)} facts of {needed:,} tokens do not fit into a text of {length:,}; give a greater length"
        )
    rng = Random(f"depths {seed}")
    places = dict(zip(rng.sample(gaps, len(facts)), facts, strict=True))
    made = [_paragraph(sentences, row, places) for row, sentences in enumerate(paragraphs)]
    texts = [text for text, _ in made]
    texts += _ending(filler, length - _prompt_tokens(_document(texts), tokenizer), tokenizer)
    document = _document(texts)
    tokens = _prompt_tokens(document, tokenizer)
    return Planted(document, tokens, _locate(document, tokens, made, tokenizer))


def _paragraph(sentences: Sequence[str], row: int, places: dict[tuple[int, int], str]) -> tuple[str, dict[str, int]]:
    """The sentences with the facts that come before them, and at which character each fact begins."""
    text, offsets, was_alone = "", dict[str, int](), False
    for at, sentence in enumerate(sentences):
        fact = places.get((row, at))
        for part in (fact, sentence) if fact is not None else (sentence,):
            is_alone = part is fact and not _is_sentence(part)
            text += ("\n" if is_alone or was_alone else " ") if text else ""
            was_alone = is_alone
            if part is fact:
                offsets[fact] = len(text)
            text += part
    return text, offsets


def _is_sentence(fact: str) -> bool:
    return fact.endswith(_SENTENCE_ENDS) and "\n" not in fact


def _ending(filler: Filler, room: int, tokenizer: Tokenizer) -> list[str]:
    """Paragraphs of one sentence that fill `room` tokens, but for a few; nothing where that is too few."""
    texts: list[str] = []
    while room > _CLOSING_TOKENS:
        texts.append(filler.sentence())
        room -= _paragraph_tokens(texts[-1], tokenizer)
    if room < 0:
        room += _paragraph_tokens(texts.pop(), tokenizer)
    # The longest of some sentences that fit into what is left.
    closing, used = "", 0
    for sentence in (*_CLOSINGS, *(filler.sentence() for _ in range(_CLOSING_TRIES))):
        tokens = _paragraph_tokens(sentence, tokenizer)
        if used < tokens <= room:
            closing, used = sentence, tokens
    return [*texts, closing] if closing else texts


def _paragraph_tokens(text: str, tokenizer: Tokenizer) -> int:
    """Tokens of a paragraph that another one follows."""
    return len(tokenizer.encode_text(f"{text}{_BETWEEN}A")) - 1


def _document(texts: Sequence[str]) -> Document:
    """The paragraphs as a text file is read: one span."""
    return Document(FILE_NAME, (SourceFile(FILE_NAME, (Span(_BETWEEN.join(texts) + "\n", line=1),)),))


def _prompt_tokens(document: Document, tokenizer: Tokenizer) -> int:
    return tokenizer.encode_prompt([Message("user", "?")], [document]).stable_tokens


def _locate(
    document: Document, tokens: int, paragraphs: Sequence[tuple[str, dict[str, int]]], tokenizer: Tokenizer
) -> dict[str, PlantedFact]:
    """The tokens of every fact; `paragraphs` are those that the text begins with, and where in them facts begin."""
    prompt = tokenizer.encode_prompt([Message("user", "?")], [document])
    (file,) = tokenizer.document_tokens([document], prompt.documents_at)
    begins = file.ends[0]
    ends = np.cumsum(file.characters[begins:], dtype=np.int64)
    at, found = 0, dict[str, PlantedFact]()
    for text, within in paragraphs:
        for fact, character in within.items():
            # A token of a blank and a word is the word's.
            low, high = np.searchsorted(ends, (at + character, at + character + len(fact) - 1), side="right").tolist()
            start = file.start + begins + low
            found[fact] = PlantedFact(start, file.start + begins + high + 1, start / tokens)
        at += len(text) + len(_BETWEEN)
    return found
