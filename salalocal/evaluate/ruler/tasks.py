"""All 13 RULER tasks by name, with the settings of the paper's appendix. No torch; the same seed, the same samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from salalocal.errors import InvalidRequest
from salalocal.evaluate.ruler.aggregation import draw_coded_words, draw_common_words, draw_tracking
from salalocal.evaluate.ruler.needles import NeedleTask
from salalocal.evaluate.ruler.questions import draw_one_step, draw_two_steps
from salalocal.evaluate.ruler.sample import Growing, Measure, Sample, grow

Draw = Callable[[Random, int], Growing]

TASKS: dict[str, Draw] = {
    "niah_single_1": NeedleTask("noise").draw,
    "niah_single_2": NeedleTask("prose").draw,
    "niah_single_3": NeedleTask("prose", value="uuid").draw,
    "niah_multikey_1": NeedleTask("prose", keys=4).draw,
    "niah_multikey_2": NeedleTask("needles").draw,
    "niah_multikey_3": NeedleTask("needles", key="uuid", value="uuid").draw,
    "niah_multivalue": NeedleTask("prose", values_per_key=4).draw,
    "niah_multiquery": NeedleTask("prose", keys=4, asked=4).draw,
    "vt": draw_tracking,
    "cwe": draw_common_words,
    "fwe": draw_coded_words,
    "qa_1": draw_one_step,
    "qa_2": draw_two_steps,
}
SINGLE_NEEDLE = ("niah_single_1", "niah_single_2", "niah_single_3")


def choose_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """The tasks named, in the table's order; all where none is named.

    Raises:
        InvalidRequest: a name that is none, with those that are.
    """
    for name in names:
        if name not in TASKS:
            raise InvalidRequest(f"there is no task {name!r}; known are {', '.join(TASKS)}")
    return tuple(task for task in TASKS if not names or task in names)


def make_sample(task: str, length: int, index: int, seed: int, measure: Measure) -> Sample:
    """Sample number `index` of a task, grown to at most `length` tokens as `measure` counts them.

    Raises:
        InvalidRequest: the task does not fit into so few tokens.
    """
    try:
        return grow(_drawn(task, length, index, seed), length, measure)
    except InvalidRequest as error:
        raise InvalidRequest(f"{task}: {error}") from None


def check_fits(task: str, length: int, seed: int, measure: Measure) -> None:
    """Raises what `make_sample` would for a length that is too short, without growing anything."""
    growing = _drawn(task, length, 0, seed)
    if (size := measure(growing.build(growing.least))) > length:
        raise InvalidRequest(f"{task}: takes at least {size:,} tokens and {length:,} were asked for")


def _drawn(task: str, length: int, index: int, seed: int) -> Growing:
    return TASKS[task](Random(f"{seed} {task} {length} {index}"), index)
