"""Draws the facts of one training sequence: what is planted, what is asked, and what is asked in vain.

Knows statements and wordings, not tokens or filler.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from salalocal.training.code_facts import CodeScene, MentionScene
from salalocal.training.events import EventScene
from salalocal.training.lexicon import Lexicon
from salalocal.training.relations import RelationScene
from salalocal.training.statements import Ask, Split, Statement
from salalocal.training.tales import TaleScene, tales

PLANTED_SHARE = 0.68
_LEAST_BORROWED = 4


@dataclass
class Scene:
    """Facts to plant, in this order.

    `asks` pairs a question with the indices of the statements that its spans lie in, `absent` holds questions whose
    fact was left out although parts of it are there, or that ask something else of a name that is there.
    """

    statements: list[Statement] = field(default_factory=list)
    asks: list[tuple[Ask, tuple[int, ...]]] = field(default_factory=list)
    absent: list[Ask] = field(default_factory=list)


def draw_scene(lexicon: Lexicon, split: Split, count: int) -> Scene:
    """About `count` planted facts of mixed kinds; both lists of questions come shuffled."""
    scene = Scene()
    planted_keys: set[tuple[str, ...]] = set()
    ghosts: list[Ask] = []
    told = TaleScene(lexicon, tales(split))
    while len(scene.statements) < count:
        room = count - len(scene.statements)
        kind = lexicon.between(0, 99)
        if kind < 7:
            _add_mentions(scene, lexicon, split)
            continue
        cells: list[Statement]
        if kind < 60:
            cells = told.cells(min(room + 2, lexicon.between(2, 8)))
        elif kind < 77:
            subjects = lexicon.between(1, min(5, room + 1))
            cells = RelationScene(lexicon, split, subjects, lexicon.between(1, 3)).cells()
        elif kind < 88:
            cells = EventScene(lexicon, split, min(room + 2, lexicon.between(2, 8))).cells()
        else:
            cells = CodeScene(lexicon, split, min(room + 2, lexicon.between(2, 8))).cells()
        order = lexicon.shuffled(len(cells))
        if not cells:
            continue
        planted = max(1, round(len(cells) * PLANTED_SHARE))
        for position, cell in enumerate(order):
            statement = cells[cell]
            if position >= planted:
                ghosts.extend(statement.asks)
            elif not any(ask.key in planted_keys for ask in statement.asks):
                planted_keys.update(ask.key for ask in statement.asks)
                scene.asks.extend((ask, (len(scene.statements),)) for ask in statement.asks)
                scene.statements.append(statement)
    ghosts = [ask for ask in ghosts if ask.key not in planted_keys]
    scene.absent = ghosts + told.borrowed(max(_LEAST_BORROWED, len(ghosts)), split)
    scene.asks = [scene.asks[i] for i in lexicon.shuffled(len(scene.asks))]
    scene.absent = [scene.absent[i] for i in lexicon.shuffled(len(scene.absent))]
    return scene


def _add_mentions(scene: Scene, lexicon: Lexicon, split: Split) -> None:
    group = MentionScene(lexicon, split).group()
    if group is not None:
        statements, ask = group
        first = len(scene.statements)
        scene.statements.extend(statements)
        scene.asks.append((ask, tuple(range(first, first + len(statements)))))
