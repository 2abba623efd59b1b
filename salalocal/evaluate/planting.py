"""Facts planted in made-up prose: which facts share a text, where each of them stands, in characters and in tokens.

Knows tokenizers and no network. A text is a `Document`, laid out in a prompt as any other document is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from salalocal.documents import Document, SourceFile, Span
from salalocal.errors import InvalidRequest
from salalocal.evaluate.fact_rows import FactRow
from salalocal.evaluate.filler import Filler
from salalocal.evaluate.scoring import normalize
from salalocal.tokenizer import Message, Tokenizer

FILE_NAME = "chronicle.txt"
FACT_SHARE = 0.1
"""Of a text at most this share is facts: more of them, and it would no longer be a text that they are hidden in."""

_ROOM_TOKENS = 160
_TRIES_AT_THE_END = 40
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
    overhead = _prompt_tokens(_document(["."]), tokenizer) - len(tokenizer.encode_text(".\n\n\n"))
    needed = sum(len(tokenizer.encode_text(f" {fact}\n")) for fact in facts)
    room = length - overhead - needed - _ROOM_TOKENS
    filler, paragraphs, used = Filler(seed), list[list[str]](), 0
    while used < room:
        paragraphs.append(filler.paragraph())
        used += len(tokenizer.encode_text(" ".join(paragraphs[-1]) + "\n\n"))
    if len(paragraphs) > 1 and used > room:
        paragraphs.pop()
    gaps = [(row, at) for row, sentences in enumerate(paragraphs) for at in range(len(sentences))]
    if len(gaps) <= len(facts):
        raise InvalidRequest(
            f"{len(facts)} facts of {needed:,} tokens do not fit into a text of {length:,}; give a greater length"
        )
    rng = Random(f"depths {seed}")
    places = dict(zip(rng.sample(gaps, len(facts)), facts, strict=True))
    texts = [_paragraph(sentences, row, places) for row, sentences in enumerate(paragraphs)]
    texts += _ending(filler, length - _prompt_tokens(_document(texts), tokenizer), tokenizer)
    document = _document(texts)
    tokens = _prompt_tokens(document, tokenizer)
    return Planted(document, tokens, _locate(document, tokens, set(facts), places, tokenizer))


def _paragraph(sentences: Sequence[str], row: int, places: dict[tuple[int, int], str]) -> str:
    """The sentences with the facts that come before them."""
    parts: list[str] = []
    for at, sentence in enumerate(sentences):
        fact = places.get((row, at))
        if fact is not None:
            parts += [fact, " "] if _is_sentence(fact) else [*(["\n"] if parts else []), fact, "\n"]
        parts += [sentence, " "]
    return "".join(parts[:-1]).replace(" \n", "\n")


def _is_sentence(fact: str) -> bool:
    return fact.endswith(_SENTENCE_ENDS) and "\n" not in fact


def _ending(filler: Filler, room: int, tokenizer: Tokenizer) -> list[str]:
    """Paragraphs of one sentence that fill what is left, as nearly as a few tries can."""
    texts: list[str] = []
    for _ in range(_TRIES_AT_THE_END):
        sentence = filler.sentence()
        tokens = len(tokenizer.encode_text(sentence + "\n\n"))
        # One token to spare: the last span of a file is encoded with a further line end.
        if tokens < room:
            texts.append(sentence)
            room -= tokens
    return texts


def _document(texts: Sequence[str]) -> Document:
    spans, line = [], 1
    for text in texts:
        spans.append(Span(text + "\n\n", line=line))
        line += text.count("\n") + 2
    return Document(FILE_NAME, (SourceFile(FILE_NAME, tuple(spans)),))


def _prompt_tokens(document: Document, tokenizer: Tokenizer) -> int:
    return tokenizer.encode_prompt([Message("user", "?")], [document]).stable_tokens


def _locate(
    document: Document, tokens: int, facts: set[str], places: dict[tuple[int, int], str], tokenizer: Tokenizer
) -> dict[str, PlantedFact]:
    """The tokens of every fact, counted in the spans as the prompt encodes them."""
    rows_of: dict[int, list[str]] = {}
    for (row, _), fact in places.items():
        rows_of.setdefault(row, []).append(fact)
    spans = document.files[0].spans
    texts = [span.text for span in spans[:-1]] + [spans[-1].text + "\n"]
    sizes = [len(tokenizer.encode_text(text)) for text in texts]
    at, found = tokens - sum(sizes), dict[str, PlantedFact]()
    for row, (text, size) in enumerate(zip(texts, sizes, strict=True)):
        for fact in rows_of.get(row, ()):
            character = text.index(fact)
            start = at + len(tokenizer.encode_text(text[:character].rstrip(" ")))
            end = at + len(tokenizer.encode_text(text[: character + len(fact)]))
            found[fact] = PlantedFact(start, max(end, start + 1), start / tokens)
        at += size
    assert found.keys() == facts
    return found
