"""The page: both panes, and what each button does. The only place where Gradio's events are wired.

Knows `Desk` and the panes; knows no server and no port. A handler hands its request to the desk and then watches
the desk until it is idle, sending what changed at most `MOST_UPDATES_PER_SECOND` times a second. Gradio keeps
nothing: no state, no history, no copy of the conversation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from salalocal_ui import chat_pane, library_pane
from salalocal_ui.chat_pane import ChatPane
from salalocal_ui.library_pane import LibraryPane
from salalocal_ui.session import Desk
from salalocal_ui.state import View

MOST_UPDATES_PER_SECOND = 10
MAX_UPLOAD_MIB = 200
# The desk deletes a copy once its text is there, and the folder goes with the process. What is left are uploads
# that nobody took; one may wait behind a reading of many hours, so that Gradio may not tidy up early.
TIDY_UPLOADS_EVERY_SECONDS = 3600
KEEP_UPLOADS_SECONDS = 7 * 24 * 3600

Update = dict[Any, Any]


def build(desk: Desk) -> gr.Blocks:
    """The page over one desk, wired and not yet served."""
    view = desk.view()
    page = gr.Blocks(
        title="salalocal",
        analytics_enabled=False,
        fill_height=True,
        fill_width=True,
        delete_cache=(TIDY_UPLOADS_EVERY_SECONDS, KEEP_UPLOADS_SECONDS),
    )
    with page:
        with gr.Row(elem_id="sl-shell", equal_height=True):
            with gr.Column(elem_id="sl-library", scale=0, min_width=320):
                library = library_pane.build(view, MAX_UPLOAD_MIB)
            with gr.Column(elem_id="sl-talk", scale=1, min_width=320):
                chat = chat_pane.build(view)
        _wire(page, desk, library, chat)
    return page


def _wire(page: gr.Blocks, desk: Desk, library: LibraryPane, chat: ChatPane) -> None:
    watched = [
        library.shelf,
        library.status,
        library.read,
        library.cancel,
        chat.chat,
        chat.send,
        chat.stop,
        chat.new,
    ]
    watch = partial(_watch, desk, library, chat)
    # "multiple": a second drop while the first is still being counted is a request too; it waits its turn.
    common: dict[str, Any] = {
        "api_visibility": "private",
        "show_progress": "hidden",
        "concurrency_limit": None,
        "trigger_mode": "multiple",
    }

    async def on_drop(paths: list[str] | None) -> AsyncIterator[Update]:
        desk.add(*map(Path, paths or ()), then_delete=True)
        async for update in watch(first={library.drop: gr.File(value=None)}):
            yield update

    async def on_folder(text: str) -> AsyncIterator[Update]:
        path = text.strip().strip("\"'")
        if path:
            desk.add(Path(path).expanduser())
        async for update in watch(first={library.folder: ""}):
            yield update

    async def on_remove(event: gr.EventData) -> AsyncIterator[Update]:
        item_id = str(getattr(event, "id", ""))
        if item_id.isdecimal():
            desk.remove(int(item_id))
        async for update in watch():
            yield update

    async def on_ask(question: str) -> AsyncIterator[Update]:
        desk.ask(question)
        async for update in watch(first={chat.question: ""}):
            yield update

    def doing(action: Callable[[], None]) -> Callable[[], AsyncIterator[Update]]:
        async def handler() -> AsyncIterator[Update]:
            action()
            async for update in watch():
                yield update

        return handler

    library.drop.upload(on_drop, library.drop, [*watched, library.drop], **common)
    for trigger in (library.add_folder.click, library.folder.submit):
        trigger(on_folder, library.folder, [*watched, library.folder], **common)
    library.shelf.click(on_remove, None, watched, **common)
    library.read.click(doing(desk.read), None, watched, **common)
    for trigger in (chat.send.click, chat.question.submit):
        trigger(on_ask, chat.question, [*watched, chat.question], **common)
    chat.new.click(doing(desk.new_conversation), None, watched, **common)
    # A reload finds the desk as it is, and goes on watching what runs.
    page.load(doing(lambda: None), None, watched, **common)
    for button in (library.cancel, chat.stop):
        button.click(desk.stop, None, None, **{**common, "queue": False})


async def _watch(
    desk: Desk, library: LibraryPane, chat: ChatPane, first: Update | None = None
) -> AsyncIterator[Update]:
    """Updates of the page until nothing runs; the first one is complete, later ones hold what changed."""
    shown: dict[Any, Any] = {}
    version = -1
    while True:
        view = desk.view()
        if view.version != version:
            version = view.version
            wanted = _looks(view, library, chat)
            changed = {part: look for part, look in wanted.items() if shown.get(part) != look}
            shown = wanted
            update = {part: type(part)(**look) for part, look in changed.items()}
            update.update(first or {})
            first = None
            if update:
                yield update
        if desk.closing or not view.busy:
            return
        await asyncio.sleep(1 / MOST_UPDATES_PER_SECOND)


def _looks(view: View, library: LibraryPane, chat: ChatPane) -> dict[Any, dict[str, Any]]:
    """How each watched component looks for a view, as plain values that can be compared."""
    answering = chat_pane.answering(view)
    return {
        library.shelf: {"value": library_pane.shelf_html(view)},
        library.status: {"value": library_pane.status_html(view)},
        library.read: {
            "value": library_pane.read_label(view),
            "interactive": library_pane.can_read(view),
            "visible": not library_pane.stoppable(view),
        },
        library.cancel: {"visible": library_pane.stoppable(view)},
        chat.chat: {"value": chat_pane.chat_messages(view), "placeholder": chat_pane.placeholder(view)},
        chat.send: {"visible": not answering},
        chat.stop: {"visible": answering},
        chat.new: {"interactive": bool(view.turns) and not view.busy},
    }
