"""Facts planted in made-up prose: which facts share a text, where each of them stands, in characters and in tokens.

Knows tokenizers and no network. A text is a `Document`, laid out in a prompt as any other document is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
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
_CLOSING_TOKENS = 60
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
    made = [_paragraph(sentences, row, places) for row, sentences in enumerate(paragraphs)]
    texts = [text for text, _ in made]
    texts += _ending(filler, length - _prompt_tokens(_document(texts), tokenizer), tokenizer)
    document = _document(texts)
    tokens = _prompt_tokens(document, tokenizer)
    return Planted(document, tokens, _locate(document, tokens, [offsets for _, offsets in made], tokenizer))


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
    """Paragraphs of one sentence that fill `room` tokens, but for two or three; nothing where that is too few."""
    texts: list[str] = []
    while room > _CLOSING_TOKENS:
        texts.append(filler.sentence())
        room -= len(tokenizer.encode_text(texts[-1] + "\n\n"))
    if room < 0:
        room += len(tokenizer.encode_text(texts.pop() + "\n\n"))
    closing = ""
    for times in count():
        longer = f"And so it went on{' and on' * times}."
        # One token to spare: the last span of a file is encoded with a further line end.
        if len(tokenizer.encode_text(longer + "\n\n")) >= room:
            break
        closing = longer
    return [*texts, closing] if closing else texts


def _document(texts: Sequence[str]) -> Document:
    spans, line = [], 1
    for text in texts:
        spans.append(Span(text + "\n\n", line=line))
        line += text.count("\n") + 2
    return Document(FILE_NAME, (SourceFile(FILE_NAME, tuple(spans)),))


def _prompt_tokens(document: Document, tokenizer: Tokenizer) -> int:
    return tokenizer.encode_prompt([Message("user", "?")], [document]).stable_tokens


def _locate(
    document: Document, tokens: int, offsets: Sequence[dict[str, int]], tokenizer: Tokenizer
) -> dict[str, PlantedFact]:
    """The tokens of every fact, counted in the spans as the prompt encodes them; `offsets` are those of its spans."""
    spans = document.files[0].spans
    texts = [span.text for span in spans[:-1]] + [spans[-1].text + "\n"]
    sizes = [len(tokenizer.encode_text(text)) for text in texts]
    at, found = tokens - sum(sizes), dict[str, PlantedFact]()
    # The paragraphs at the end hold no facts.
    endings = [dict[str, int]()] * (len(texts) - len(offsets))
    for text, size, within in zip(texts, sizes, [*offsets, *endings], strict=True):
        for fact, character in within.items():
            start = at + len(tokenizer.encode_text(text[:character].rstrip(" ")))
            end = at + len(tokenizer.encode_text(text[: character + len(fact)]))
            found[fact] = PlantedFact(start, max(end, start + 1), start / tokens)
        at += size
    return found
