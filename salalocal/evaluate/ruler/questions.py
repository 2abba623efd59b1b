"""The two question tasks of RULER: paragraphs that hold the answer, in one step or in two, among others like them.

RULER takes paragraphs and questions from SQuAD and HotpotQA; here both are made up, so that no model has read them.
No torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from salalocal.evaluate.ruler.sample import Growing, Sample
from salalocal.evaluate.words import ADJECTIVES, NOUNS, invented_person, invented_place

_TRADE_WORDS = (
    "baker carpenter clockmaker cooper dyer engraver ferryman fiddler gardener glazier glover joiner mason miller "
    "nurse painter potter printer rower saddler sailor smith surveyor tailor tanner teacher weaver"
)
_TRADES = tuple(_TRADE_WORDS.split())
_PARAGRAPH_SENTENCES = 5
_ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Life:
    """A made-up person, as a paragraph and as questions with their answers."""

    person: str
    birthplace: str
    year: str
    trade: str
    teacher: str
    late_place: str
    object: str

    @staticmethod
    def draw(rng: Random) -> Life:
        return Life(
            person=invented_person(rng),
            birthplace=invented_place(rng),
            year=str(rng.randint(1502, 1967)),
            trade=rng.choice(_TRADES),
            teacher=invented_person(rng),
            late_place=invented_place(rng),
            object=f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}",
        )

    def sentences(self) -> list[str]:
        return [
            f"{self.person} was born in {self.birthplace} in the year {self.year}.",
            f"Like others of that family, {self.person} first worked as a {self.trade}.",
            f"The craft was learned from {self.teacher}, who was known to be strict.",
            f"Later years were spent in {self.late_place}.",
            f"What is best remembered of {self.person} is a {self.object}.",
        ]

    def ask(self, rng: Random) -> tuple[str, str]:
        return rng.choice(
            (
                (f"Where was {self.person} born?", self.birthplace),
                (f"In which year was {self.person} born?", self.year),
                (f"What did {self.person} first work as?", self.trade),
                (f"From whom did {self.person} learn the craft?", self.teacher),
                (f"Where did {self.person} spend later years?", self.late_place),
            )
        )


@dataclass(frozen=True)
class Works:
    """A made-up workshop that leads to a person."""

    name: str
    founder: str
    street: str
    goods: str
    place: str

    @staticmethod
    def draw(rng: Random, founder: str | None = None) -> Works:
        return Works(
            name=f"the {invented_place(rng)} {rng.choice(NOUNS)} works",
            founder=founder or invented_person(rng),
            street=f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} lane",
            goods=f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}",
            place=invented_place(rng),
        )

    def sentences(self) -> list[str]:
        name = self.name[0].upper() + self.name[1:]
        return [
            f"{name} stood in {self.street.title()}.",
            f"They were founded by {self.founder}.",
            f"For a long time their only product was a {self.goods}.",
            f"Most of what was made there went to {self.place}.",
            "The building can still be seen.",
        ]


def draw_one_step(rng: Random, index: int) -> Growing:
    """A question about one person, answered in that person's paragraph."""
    del index
    life = Life.draw(rng)
    question, answer = life.ask(rng)
    return _among(rng, [life.sentences()], question, answer, lambda rng: Life.draw(rng).sentences())


def draw_two_steps(rng: Random, index: int) -> Growing:
    """Where the founder of some works was born: their paragraph names the person, whose paragraph names the place."""
    del index
    life = Life.draw(rng)
    works = Works.draw(rng, life.person)

    def other(rng: Random) -> list[str]:
        return (Life.draw(rng) if rng.random() < 0.5 else Works.draw(rng)).sentences()

    question = f"Where was the founder of {works.name} born?"
    return _among(rng, [life.sentences(), works.sentences()], question, life.birthplace, other)


def _among(
    rng: Random,
    holding: list[list[str]],
    question: str,
    answer: str,
    other: Callable[[Random], list[str]],
) -> Growing:
    """Paragraphs `holding` the answer among others; a unit is a sentence of those."""
    depths = [rng.random() for _ in holding]
    others_rng, others = Random(f"others {rng.random()}"), list[list[str]]()

    def build(units: int) -> Sample:
        whole, rest = divmod(units, _PARAGRAPH_SENTENCES)
        while len(others) < whole + 1:
            paragraph = other(others_rng)
            # Nothing else may hold the answer.
            if not any(answer in sentence for sentence in paragraph):
                others.append(paragraph)
        documents = others[:whole] + ([others[whole][:rest]] if rest else [])
        for depth, paragraph in sorted(zip(depths, holding, strict=True), reverse=True):
            documents.insert(int(depth * (whole + 1)), paragraph)
        task = "Answer the question from the documents. Give the answer and nothing else."
        return Sample(
            instruction=f"{task}\n\nThese are the documents.\n",
            context="\n\n".join(
                f"Document {number}:\n{' '.join(paragraph)}" for number, paragraph in enumerate(documents, start=1)
            ),
            question=f"\n{task}\n\nQuestion: {question}",
            answer_prefix=" Answer:",
            answers=(answer,),
            match="part",
            answer_tokens=_ANSWER_TOKENS,
        )

    return Growing(build, least=2 * _PARAGRAPH_SENTENCES)
