"""A request on the desk's queue, and what the page may know of the queue. Knows no engine and no lock."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from salalocal_ui.state import Activity, Reading, Task


@dataclass
class Job:
    """One request; `turn_id` is the turn that it answers, if it is a question. The desk's lock guards it."""

    task: Task
    label: str
    turn_id: int | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    reading: Reading | None = None


def activity_of(jobs: Sequence[Job]) -> Activity | None:
    """The first job runs, the others wait; None where there is none."""
    if not jobs:
        return None
    running, *waiting = jobs
    return Activity(
        task=running.task,
        label=running.label,
        reading=running.reading,
        stopping=running.cancel.is_set(),
        waiting=tuple(job.label for job in waiting),
    )
