"""The desk behind the window: one engine, one shelf of documents, one conversation, one worker.

Knows salalocal's public names; knows nothing of Gradio or HTML. Every request (add, read, ask) is a job on one
worker thread, so the engine never serves two at once and a request that has to wait can be told so. The page
only looks: `view()` is a snapshot, and closing the page stops nothing.

Two sessions: the *reader* holds the documents and nothing else, so that what was read survives a cancelled
reading, a new conversation and a document added behind it; the *talk* is a fork of it that holds the turns.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import salalocal
from salalocal import Cancelled, ContextTooLong, Document, Engine, InvalidRequest, SalaError, Session
from salalocal_ui.conversation import Conversation
from salalocal_ui.jobs import Job, activity_of
from salalocal_ui.notices import NOT_BEGUN, STOPPED, ending, refusal, unforeseen
from salalocal_ui.state import FileCount, Item, Notice, Reading, View
from salalocal_ui.wording import ended

logger = logging.getLogger(__name__)

# So that taking a document away or adding one in between re-reads at most this much before it.
CHECKPOINT_EVERY_TOKENS = 65536


class Desk:
    """What the window works on. All methods return at once; the work is done by one thread.

    `engine`: a loaded model. `model_name`: shown to the user. `sampling`: how answers are drawn.
    Raises nothing after construction: what goes wrong becomes a `Notice` in the view.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        model_name: str,
        sampling: salalocal.Sampling | None = None,
    ) -> None:
        self._engine = engine
        self._model_name = model_name
        self._sampling = sampling or salalocal.Sampling()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="salalocal-desk")
        self._lock = threading.Lock()
        # Everything below is read and written under the lock.
        self._jobs: list[Job] = []
        self._version = 0
        self._next_id = 1
        self._items: list[Item] = []
        self._documents: dict[int, Document] = {}
        self._conversation = Conversation()
        self._notices: list[Notice] = []
        self._total_tokens = 0
        self._read_tokens = 0
        self._limit_tokens = engine.max_context_tokens()
        self._length_note: str | None = None
        # Set once, without the lock, by whoever ends the process; whoever watches the desk stops watching.
        self.closing = False
        # Only the worker touches these.
        self._ids: list[int] = []
        self._reader: Session | None = None
        self._talk: Session | None = None

    def view(self) -> View:
        """What there is to show now."""
        with self._lock:
            return View(
                version=self._version,
                model=self._model_name,
                items=tuple(self._items),
                read_tokens=self._read_tokens,
                total_tokens=self._total_tokens,
                limit_tokens=self._limit_tokens,
                length_note=self._length_note,
                activity=activity_of(self._jobs),
                notices=tuple(self._notices),
                turns=self._conversation.turns,
            )

    def add(self, *paths: Path, then_delete: bool = False) -> None:
        """Put files, folders or archives on the shelf and count their tokens.

        `then_delete`: the paths are uploaded copies of ours; each goes as soon as its text is here.
        """
        self._submit(
            *((Job("adding", path.name or str(path)), partial(self._add, path, then_delete)) for path in paths)
        )

    def remove(self, item_id: int) -> None:
        """Take a document off the shelf; ids that are not there are ignored."""
        self._submit((Job("tidying", "taking a document away"), lambda _job: self._remove(item_id)))

    def read(self) -> None:
        """Read what is on the shelf and not read yet; goes on where a stopped reading ended."""
        self._submit((Job("reading", "the documents"), self._read_documents))

    def ask(self, question: str) -> None:
        """Ask about the documents; what is unread is read first. An empty question is ignored.

        The turn is in the view at once, also while it waits.
        """
        question = question.strip()
        if question:
            with self._lock:
                job = Job("answering", question, self._conversation.ask(question))
            self._submit((job, partial(self._ask, question)))

    def new_conversation(self) -> None:
        """Forget the turns, keep what was read."""
        self._submit((Job("tidying", "a new conversation"), lambda _job: self._forget_turns()))

    def stop(self) -> None:
        """Stop what runs and drop what waits; keeps what was read and said."""
        with self._lock:
            for job in self._jobs:
                job.cancel.set()
            self._version += 1

    def close(self) -> None:
        """Stop, and wait for the running job to end. The desk takes no further request."""
        self.closing = True
        self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    # ---- requests -------------------------------------------------------------------------------------------

    def _submit(self, *requests: tuple[Job, Callable[[Job], None]]) -> None:
        """Queue requests made together: none of them clears the notice that another one left."""
        with self._lock:
            if not self._jobs:
                self._notices.clear()
            self._jobs += [job for job, _work in requests]
            self._version += 1
        for job, work in requests:
            self._pool.submit(self._run, job, work).add_done_callback(partial(self._finish, job))

    def _run(self, job: Job, work: Callable[[Job], None]) -> None:
        if job.cancel.is_set():
            if job.turn_id is None:
                self._notify(Notice(ended(f"Stopped before it began: {job.label}")))
            else:
                self._change_turn(job, waiting=False, finished=True, notice=NOT_BEGUN)
            return
        try:
            work(job)
        except Cancelled:
            self._notify(STOPPED)
        except SalaError as error:
            self._notify(refusal(error))

    def _finish(self, job: Job, future: Future[None]) -> None:
        try:
            error = future.exception()
        except CancelledError:
            error = None
        with self._lock:
            self._jobs.remove(job)
            if error is not None:
                self._notices.append(unforeseen(error))
            self._version += 1
        if error is not None:
            logger.error("%s %s failed", job.task, job.label, exc_info=error)

    def _notify(self, notice: Notice) -> None:
        with self._lock:
            self._notices.append(notice)
            self._version += 1

    # ---- the shelf ------------------------------------------------------------------------------------------

    def _add(self, path: Path, then_delete: bool, job: Job) -> None:
        name = job.label

        def on_progress(done_files: int, total_files: int) -> None:
            self._look_at_stop(job)
            with self._lock:
                job.label = f"{name} ({done_files:,} of {total_files:,} files)" if total_files > 1 else name
                self._version += 1

        try:
            document = salalocal.read(path, on_progress)
            with self._lock:
                known = document in self._documents.values()
            if known:
                raise InvalidRequest(f"already here: {document.name}")
            if not document.files:
                reason = document.skipped[0].reason if document.skipped else "it is empty"
                raise salalocal.BadDocument(f"there is no text to read in {document.name}: {reason}")
            counts = self._count_files(document, job)
        except Cancelled:
            self._notify(Notice(ended(f"Stopped; not added: {name}")))
            return
        finally:
            if then_delete:
                path.unlink(missing_ok=True)
        with self._lock:
            item = Item(self._next_id, document.name, counts, document.skipped)
            self._next_id += 1
            self._items.append(item)
            self._documents[item.id] = document
        self._shelf_changed()

    def _count_files(self, document: Document, job: Job) -> tuple[FileCount, ...]:
        counts = []
        for file in document.files:
            self._look_at_stop(job)
            ids = self._engine.encode(replace(document, files=(file,), skipped=()))
            counts.append(FileCount(file.path, len(ids)))
        return tuple(counts)

    def _look_at_stop(self, job: Job) -> None:
        if job.cancel.is_set():
            with self._lock:
                raise Cancelled(self._read_tokens)

    def _remove(self, item_id: int) -> None:
        with self._lock:
            self._items = [item for item in self._items if item.id != item_id]
            if self._documents.pop(item_id, None) is not None:
                self._conversation.document_gone()
        self._shelf_changed()

    def _shelf_changed(self) -> None:
        """Recount what is to be read; the reader goes back to where the documents still begin the same way."""
        with self._lock:
            documents = list(self._documents.values())
        # The ids with which every prompt about these documents begins.
        self._ids = ids = self._engine.encode(documents) if documents else []
        if not ids:
            self._reader = None
        kept = self._reader.keep_common(ids) if self._reader is not None else 0
        self._talk = None
        limit = self._reader.max_tokens if self._reader is not None else self._engine.max_context_tokens()
        with self._lock:
            self._total_tokens = len(ids)
            self._read_tokens = kept
            self._limit_tokens = limit
            self._length_note = self._engine.length_note(len(ids))
            self._version += 1

    # ---- reading and answering ------------------------------------------------------------------------------

    def _read_documents(self, job: Job) -> None:
        ids = self._ids
        if not ids:
            return
        if self._reader is None:
            self._reader = self._engine.new_session()
        reader = self._reader
        start = reader.length
        if start >= len(ids):
            return

        def on_progress(progress: salalocal.Progress) -> None:
            self._show_reading(job, start + progress.done_tokens, len(ids), progress)

        with self._lock:
            job.reading = Reading(start, len(ids))
            self._version += 1
        try:
            reader.prefill(
                ids[start:],
                final_length=len(ids),
                checkpoints_at=range(start + CHECKPOINT_EVERY_TOKENS, len(ids), CHECKPOINT_EVERY_TOKENS),
                on_progress=on_progress,
                cancel=job.cancel,
            )
            # Every question about these documents comes back to here.
            reader.checkpoint()
        finally:
            # Also after a refusal or a cancel: the session says itself how much it holds.
            with self._lock:
                self._read_tokens = reader.length
                job.reading = None
                self._version += 1

    def _show_reading(self, job: Job, done: int, total: int, progress: salalocal.Progress) -> None:
        with self._lock:
            job.reading = Reading(done, total, progress.tokens_per_second, progress.seconds_left)
            self._version += 1

    def _ask(self, question: str, job: Job) -> None:
        with self._lock:
            messages = self._conversation.prompt(question)
            documents = list(self._documents.values())
            items = tuple(self._items)
        self._change_turn(job, waiting=False)
        try:
            self._read_documents(job)
            self._answer(messages, documents, job)
        except Cancelled:
            self._change_turn(job, notice=STOPPED)
        except SalaError as error:
            # The half-made session may hold part of this question; the next one starts from the documents.
            self._talk = None
            too_long = isinstance(error, ContextTooLong) and bool(items)
            self._change_turn(job, notice=refusal(error, items), too_long=too_long)
        finally:
            self._change_turn(job, finished=True)

    def _answer(self, messages: list[salalocal.Message], documents: list[Document], job: Job) -> None:
        if self._talk is None:
            self._talk = self._reader.fork() if self._reader is not None else self._engine.new_session()
        answer: list[str] = []
        events = self._engine.chat(self._talk, messages, documents, self._sampling, cancel=job.cancel)
        for event in events:
            if isinstance(event, salalocal.Progress):
                left = event.total_tokens - event.done_tokens
                self._show_reading(job, self._talk.length, self._talk.length + left, event)
            elif isinstance(event, salalocal.Token):
                answer.append(event.text)
                self._end_reading(job)
                self._change_turn(job, answer="".join(answer))
            elif isinstance(event, salalocal.Evidence):
                self._change_turn(job, quotes=event.quotes, passages=event.passages)
            else:
                self._change_turn(job, usage=event.usage, notice=ending(event.finish_reason, self._sampling))

    def _end_reading(self, job: Job) -> None:
        with self._lock:
            job.reading = None

    def _change_turn(self, job: Job, **changes: object) -> None:
        with self._lock:
            if job.turn_id is not None:
                self._conversation.change(job.turn_id, **changes)
            self._version += 1

    def _forget_turns(self) -> None:
        self._talk = None
        with self._lock:
            self._conversation.forget()
            self._version += 1
