"""Puts documents, planted facts and questions together into token sequences with every answer's source position.

A sequence is one chat: documents first, then question after question. Answers are copied token by token from where
they stand in the documents. Knows nothing of the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from salalocal.training import prompt
from salalocal.training.filler import Corpus
from salalocal.training.lexicon import Lexicon
from salalocal.training.passages import Kind
from salalocal.training.reading import quote_question, reading_question
from salalocal.training.regions import Region, RegionMaker, encode
from salalocal.training.relations import question_text
from salalocal.training.rewording import Rewording
from salalocal.training.scenes import Scene, draw_scene
from salalocal.training.statements import ABSENT_ANSWER, Ask, Split
from salalocal.training.vocabulary import END_OF_TEXT, TURN_END, special_id

TEXT, ANSWER, IGNORED = 1, 2, 0
ABSENT_SHARE = 0.1
PASSAGE_SHARE = 0.14
CLOZE_SHARE = 0.34
QUOTE_SHARE = 0.05
"""Of the facts so many are asked for as whole sentences."""
REWORDED_SHARE, REWORDED_WORDS = 0.4, 0.3
"""Of the questions about planted facts so many have so large a share of their words put otherwise: what is learnt is to
find a fact by what a question means, and not the wordings by heart."""
NEAR_TOKENS = 40
"""Tokens around an answer's source that belong to its fact, and are not diluted."""


class Task(IntEnum):
    """What a question asks for, to tell results apart."""

    FACT = 0
    EVENT = 1
    CODE = 2
    MENTION = 3
    PASSAGE = 4
    ABSENT = 5
    TALE = 6
    CLOZE = 7


_TASKS = {"event": Task.EVENT, "code": Task.CODE, "mention": Task.MENTION, "tale": Task.TALE}


@dataclass(frozen=True)
class SampleShape:
    """Size of a sequence: tokens without the last target, planted facts, share of tokens for questions."""

    tokens: int
    facts: int
    question_share: float
    max_pairs: int
    """Answer tokens whose source position is kept, for the loss on the compressed keys."""
    max_questions: int


@dataclass(frozen=True)
class Sample:
    """One sequence.

    token_ids: [tokens + 1] uint16. roles: [tokens] uint8, of the token that position t predicts. query_positions and
    source_positions: [max_pairs] int32, -1 padded: the token predicted at the query stands at the source.
    document_end: first position after the documents. questions: [max_questions, 3] int32, -1 padded: first predicting
    position, last + 1, Task. far: [tokens] uint8, 1 for tokens of the documents that no answer stands near.
    crowding: 0 to 1, how strongly this sequence's far tokens stand for many more of their kind.
    """

    token_ids: np.ndarray
    roles: np.ndarray
    query_positions: np.ndarray
    source_positions: np.ndarray
    document_end: int
    questions: np.ndarray
    far: np.ndarray
    crowding: float


@dataclass(frozen=True)
class _Answer:
    question: str
    sources: tuple[int, ...]
    task: Task


class Sampler:
    """Draws sequences from a corpus. The same generator state gives the same sequences on every machine."""

    def __init__(self, corpus: Corpus, rng: np.random.Generator, split: Split = Split.TRAINED, held_out: bool = False):
        self._corpus = corpus
        self._rng = rng
        self._lexicon = Lexicon(rng)
        self._rewording = Rewording(self._lexicon, corpus.synonyms)
        self._split = split
        self._held_out = held_out
        self._regions = RegionMaker(corpus, rng, self._lexicon, held_out)
        tokenizer = corpus.tokenizer
        self._turn_end = special_id(tokenizer, TURN_END)
        self._padding = special_id(tokenizer, END_OF_TEXT)
        self._absent = encode(corpus, [" " + ABSENT_ANSWER])[0][0]
        self._newline = encode(corpus, ["\n"])[0][0]

    def sample(self, shape: SampleShape) -> Sample:
        """One sequence of the given shape."""
        lexicon = self._lexicon
        question_budget = int(shape.tokens * shape.question_share)
        opening = encode(self._corpus, [prompt.opening(lexicon)])[0][0]
        budget = shape.tokens + 1 - question_budget - len(opening)
        facts = shape.facts
        while True:
            scene = draw_scene(lexicon, self._split, max(1, lexicon.between(facts // 4, facts)))
            region = self._regions.region(scene, budget)
            # Long statements can fill more than their room; fewer of them then.
            if len(region.ids) <= budget + question_budget // 3:
                break
            facts = max(1, facts * 2 // 3)
        base = len(opening)
        document = np.array([*opening, *region.ids], np.int64)
        answers = self._answers(scene, region, base, shape.max_questions)
        return self._assemble(document, answers, shape)

    def _answers(
        self,
        scene: Scene,
        region: Region,
        base: int,
        limit: int,
    ) -> list[_Answer]:
        """The questions to ask, in order, with the positions their answers are copied from."""
        lexicon = self._lexicon
        facts = iter(scene.asks)
        absent = iter(scene.absent)
        readable = iter([region.passages[i] for i in lexicon.shuffled(len(region.passages))])
        clozes = iter([region.clozes[i] for i in lexicon.shuffled(len(region.clozes))])
        answers: list[_Answer] = []
        while len(answers) < limit:
            draw = self._rng.random()
            answer: _Answer | None
            if draw < ABSENT_SHARE:
                ask = next(absent, None)
                answer = _Answer(ask.question, (), Task.ABSENT) if ask else None
            elif draw < ABSENT_SHARE + PASSAGE_SHARE and (passage := next(readable, None)) is not None:
                index, low, high = passage
                kind = Kind(int(self._corpus.passage_kinds[index]))
                question, _ = reading_question(lexicon, kind, self._corpus.key(index), self._split)
                answer = _Answer(question, tuple(range(base + low, base + high)), Task.PASSAGE)
            elif draw < ABSENT_SHARE + PASSAGE_SHARE + CLOZE_SHARE and (cloze := next(clozes, None)) is not None:
                question = question_text(lexicon, cloze[0])
                answer = _Answer(question, tuple(range(base + cloze[1], base + cloze[2])), Task.CLOZE)
            else:
                fact = next(facts, None)
                if fact is None:
                    break
                answer = self._fact_answer(scene, fact, region.spans, base)
            if answer is not None:
                answers.append(answer)
        return answers

    def _fact_answer(
        self, scene: Scene, fact: tuple[Ask, tuple[int, ...]], planted: list[list[tuple[int, int]]], base: int
    ) -> _Answer | None:
        ask, statements = fact
        question, task = ask.question, _TASKS.get(ask.key[0], Task.FACT)
        is_plain = task is Task.CODE or self._split is Split.UNSEEN or self._held_out
        if not is_plain and self._lexicon.flip(REWORDED_SHARE):
            question = self._rewording.question(question, REWORDED_WORDS)
        if len(statements) > 1 or not scene.statements[statements[0]].asks:
            ranges = [planted[s][-1] for s in statements]
        elif self._lexicon.flip(QUOTE_SHARE):
            ranges = [planted[statements[0]][-1]]
            question = quote_question(self._lexicon, question, self._split)
        else:
            ranges = [planted[statements[0]][scene.statements[statements[0]].asks.index(ask)]]
        if any(low < 0 for low, _ in ranges):
            return None
        sources: list[int] = []
        for index, (low, high) in enumerate(ranges):
            sources += [*([-1] if index else []), *range(base + low, base + high)]
        return _Answer(question, tuple(sources), task)

    def _assemble(self, document: np.ndarray, answers: list[_Answer], shape: SampleShape) -> Sample:
        """Questions and answers behind the documents until the sequence is full; the rest is padding."""
        total = shape.tokens + 1
        ids = document.tolist()
        roles = [TEXT] * len(ids)
        pairs: list[tuple[int, int]] = []
        firsts: set[int] = set()
        questions: list[tuple[int, int, int]] = []
        turns = [
            prompt.next_question(answer.question, self._lexicon.flip()) if i else prompt.first_question(answer.question)
            for i, answer in enumerate(answers)
        ]
        for (turn_ids, _), answer in zip(encode(self._corpus, turns) if turns else [], answers, strict=True):
            copied = [self._newline if source < 0 else [ids[source]] for source in answer.sources]
            spoken = [i for piece in copied for i in piece] if answer.sources else list(self._absent)
            if len(ids) + len(turn_ids) + len(spoken) + 1 > total:
                break
            start = len(ids) + len(turn_ids)
            ids += [*turn_ids, *spoken, self._turn_end]
            roles += [*[IGNORED] * len(turn_ids), *[ANSWER] * (len(spoken) + 1)]
            firsts.add(start - 1)
            pairs += [(start + n - 1, source) for n, source in enumerate(answer.sources) if source >= 0]
            questions.append((start - 1, start + len(spoken), int(answer.task)))
        padding = total - len(ids)
        token_ids = np.array(ids + [self._padding] * padding, np.uint16)
        role_array = np.array(roles + [IGNORED] * padding, np.uint8)[1:]
        # An answer's first token has to find its source; the others follow it. Where room is short the first ones come.
        drawn = self._rng.permutation(len(pairs)).tolist()
        kept = sorted(sorted(drawn, key=lambda index: pairs[index][0] not in firsts)[: shape.max_pairs])
        query = np.full(shape.max_pairs, -1, np.int32)
        source_array = np.full(shape.max_pairs, -1, np.int32)
        for row, index in enumerate(kept):
            query[row], source_array[row] = pairs[index]
        asked = np.full((shape.max_questions, 3), -1, np.int32)
        if questions:
            asked[: len(questions)] = questions
        far = np.zeros(shape.tokens, np.uint8)
        far[: len(document)] = 1
        for source in {source for _, source in pairs}:
            far[max(0, source - NEAR_TOKENS) : source + NEAR_TOKENS] = 0
        return Sample(token_ids, role_array, query, source_array, len(document), asked, far, float(self._rng.random()))
