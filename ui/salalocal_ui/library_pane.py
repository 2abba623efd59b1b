"""The left pane: what is on the shelf, how long it is, and how far it has been read.

Turns a `View` into HTML (pure functions) and builds the Gradio components; knows nothing of the engine and holds
no state. Everything that came from a file (names, reasons) is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass, field

import gradio as gr

from salalocal_ui.notices import does_not_fit
from salalocal_ui.state import Activity, FileCount, Item, Notice, View
from salalocal_ui.wording import counted, ended, rate, safe, sentence, shortened, time_left, tokens

# A folder of 20,000 files is counted in full and shown in part: a page with that many rows stops a browser.
MOST_ROWS = 400
LONGEST_NOTICE = 600

REMOVE_ON_CLICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-remove]');
  if (button) { event.preventDefault(); trigger('click', {id: button.dataset.remove}); }
});
"""


@dataclass(frozen=True)
class LibraryPane:
    """The components of the left pane."""

    drop: gr.File
    folder: gr.Textbox
    add_folder: gr.Button
    shelf: gr.HTML
    status: gr.HTML
    read: gr.Button
    cancel: gr.Button


def build(view: View, max_upload_mib: int) -> LibraryPane:
    """Create the components inside the current Gradio layout."""
    gr.HTML(heading_html(view), elem_classes="sl-plain")
    drop = gr.File(
        label=f"Add documents, up to {max_upload_mib} MiB each",
        file_count="multiple",
        type="filepath",
        height=124,
        elem_id="sl-drop",
    )
    gr.HTML(
        f'<p class="sl-hint sl-faint">Up to {max_upload_mib} MiB each; larger ones, and folders, by their path.</p>',
        elem_classes="sl-plain",
    )
    with gr.Row(elem_classes="sl-path-row"):
        folder = gr.Textbox(
            label="Folder or file on this computer",
            placeholder="or type a path: ~/books",
            show_label=False,
            lines=1,
            max_lines=1,
            container=False,
            scale=1,
            min_width=120,
            elem_id="sl-folder",
        )
        add_folder = gr.Button("Add", scale=0, min_width=72, elem_id="sl-add-folder")
    shelf = gr.HTML(shelf_html(view), js_on_load=REMOVE_ON_CLICK, elem_id="sl-shelf", elem_classes="sl-plain")
    status = gr.HTML(status_html(view), elem_id="sl-status", elem_classes="sl-plain")
    with gr.Row(elem_classes="sl-read-row"):
        read = gr.Button(
            read_label(view),
            variant="primary",
            interactive=can_read(view),
            visible=not stoppable(view),
            elem_id="sl-read",
        )
        cancel = gr.Button(
            "Cancel", variant="secondary", visible=stoppable(view), elem_id="sl-cancel", elem_classes="sl-cancel"
        )
    return LibraryPane(drop, folder, add_folder, shelf, status, read, cancel)


def heading_html(view: View) -> str:
    """The name of the program and of the model."""
    return (
        '<header class="sl-head"><h1>salalocal</h1>'
        f'<p><span class="sl-dot" aria-hidden="true"></span>{safe(view.model)}'
        '<span class="sl-faint"> on this computer</span></p></header>'
    )


def can_read(view: View) -> bool:
    """Whether pressing Read would do anything."""
    return not view.busy and view.unread_tokens > 0 and not view.surplus_tokens


def stoppable(view: View) -> bool:
    """Whether Cancel takes the place of Read."""
    return view.activity is not None and view.activity.task in ("adding", "reading")


def read_label(view: View) -> str:
    """The words on the Read button."""
    if not view.items:
        return "Read"
    if view.unread_tokens == 0:
        return "Everything is read"
    if view.read_tokens:
        return f"Read on: {tokens(view.unread_tokens)} left"
    return f"Read {tokens(view.total_tokens)}"


# ---- the shelf ----------------------------------------------------------------------------------------------


def shelf_html(view: View) -> str:
    """The documents with their token counts, folders as trees."""
    if not view.items:
        return (
            '<div class="sl-empty"><p><strong>Nothing here yet.</strong></p>'
            "<p>Drop a book, a paper or a zip above, or type the path of a folder of code. "
            "You see how long it is before anything is read.</p></div>"
        )
    rows = "".join(_item_html(item) for item in view.items)
    return f'<ul class="sl-shelf" aria-label="Documents">{rows}</ul>'


def _item_html(item: Item) -> str:
    name = html.escape(item.name, quote=True)
    remove = (
        f'<button type="button" class="sl-remove" data-remove="{item.id}" '
        f'aria-label="Take {name} away" title="Take away">&times;</button>'
    )
    head = f'<span class="sl-name" title="{name}">{safe(item.name)}</span>{_count_html(item.tokens)}'
    if len(item.files) == 1 and "/" not in item.files[0].path:
        body = f'<div class="sl-row sl-single">{head}</div>'
    else:
        body = (
            f'<details class="sl-tree"><summary class="sl-row">{head}</summary>'
            f'<p class="sl-faint sl-files">{counted(len(item.files), "file", "files")}</p>'
            f"{_tree_html(item.files)}</details>"
        )
    return f'<li class="sl-item">{body}{remove}{_skipped_html(item)}</li>'


def _count_html(count: int) -> str:
    return f'<span class="sl-count" title="{tokens(count)}">{count:,}<span class="sl-unit"> tokens</span></span>'


@dataclass
class _Folder:
    tokens: int = 0
    folders: dict[str, _Folder] = field(default_factory=dict)
    files: list[tuple[str, int]] = field(default_factory=list)


def _tree_html(files: Iterable[FileCount]) -> str:
    root = _Folder()
    for file in files:
        *parents, name = file.path.split("/")
        folder = root
        folder.tokens += file.tokens
        for parent in parents:
            folder = folder.folders.setdefault(parent, _Folder())
            folder.tokens += file.tokens
        folder.files.append((name, file.tokens))
    rows: list[str] = []
    _folder_rows(root, rows)
    if len(rows) > MOST_ROWS:
        hidden = len(rows) - MOST_ROWS
        rows = [*rows[:MOST_ROWS], f'<li class="sl-row sl-faint">and {hidden:,} more rows, counted above</li>']
    return f'<ul class="sl-files-list">{"".join(rows)}</ul>'


def _folder_rows(folder: _Folder, rows: list[str], depth: int = 0) -> None:
    for name, inner in sorted(folder.folders.items()):
        rows.append(_row_html(f"{name}/", inner.tokens, depth, "sl-row sl-folder"))
        _folder_rows(inner, rows, depth + 1)
    for name, count in folder.files:
        rows.append(_row_html(name, count, depth, "sl-row"))


def _row_html(name: str, count: int, depth: int, classes: str) -> str:
    return (
        f'<li class="{classes}" style="--depth:{min(depth, 8)}">'
        f'<span class="sl-name" title="{html.escape(name, quote=True)}">{safe(name)}</span>{_count_html(count)}</li>'
    )


def _skipped_html(item: Item) -> str:
    if not item.skipped:
        return ""
    rows = "".join(
        f"<li><span>{safe(one.path)}</span> <span class='sl-faint'>{safe(one.reason)}</span></li>"
        for one in item.skipped[:MOST_ROWS]
    )
    more = len(item.skipped) - MOST_ROWS
    if more > 0:
        rows += f'<li class="sl-faint">and {more:,} more</li>'
    return (
        f'<details class="sl-skipped"><summary>{counted(len(item.skipped), "file", "files")} skipped</summary>'
        f"<ul>{rows}</ul></details>"
    )


# ---- how far it is ------------------------------------------------------------------------------------------


def status_html(view: View) -> str:
    """The bar, one line about what is going on, and the notices."""
    notices = "".join(notice_html(notice) for notice in (*verdict(view), *view.notices))
    return f'<div class="sl-status">{_bar_html(view)}<div aria-live="polite">{notices}</div></div>'


def verdict(view: View) -> tuple[Notice, ...]:
    """What there is to know about the length before any reading: it does not fit, or it is unusually long."""
    if not view.surplus_tokens:
        return (Notice(sentence(view.length_note)),) if view.length_note else ()
    return (does_not_fit(view.total_tokens, view.limit_tokens, view.items),)


def notice_html(notice: Notice) -> str:
    """One sentence in a box; refusals are announced at once."""
    role = "status" if notice.tone == "info" else "alert"
    return f'<p class="sl-notice sl-{notice.tone}" role="{role}">{safe(shortened(notice.text, LONGEST_NOTICE))}</p>'


def _bar_html(view: View) -> str:
    activity = view.activity
    reading = activity.reading if activity is not None else None
    done, total = view.read_tokens, view.total_tokens
    line = ""
    if activity is not None and reading is not None:
        done, total = reading.done_tokens, reading.total_tokens
        parts = [rate(reading.tokens_per_second), time_left(reading.seconds_left)]
        line = "Stopping after this chunk" if activity.stopping else " · ".join(part for part in parts if part)
    elif activity is not None:
        line = _doing(activity)
    elif 0 < done < total and not view.surplus_tokens:
        line = "Press Read to go on from here"
    html_parts = []
    if total:
        percent = min(100, done * 100 // total)
        html_parts.append(
            f'<div class="sl-bar" role="progressbar" aria-label="Read so far" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{percent}"><span style="width:{percent}%"></span></div>'
            f'<p class="sl-line"><strong>{percent}%</strong><span>{done:,} of {tokens(total)} read</span></p>'
        )
    if line:
        html_parts.append(f'<p class="sl-line sl-faint">{line}</p>')
    if activity is not None:
        html_parts.append(_waiting_html(activity))
    return "".join(html_parts)


def _doing(activity: Activity) -> str:
    label = safe(shortened(activity.label, 60))
    if activity.stopping:
        return "Stopping…"
    if activity.task == "adding":
        return f"Counting the tokens of {label}…"
    if activity.task == "answering":
        return "Answering…"
    if activity.task == "reading":
        return "Reading…"
    return "One moment…"


def _waiting_html(activity: Activity) -> str:
    if not activity.waiting:
        return ""
    labels = [shortened(label, 40) for label in activity.waiting[:3]]
    text = ", ".join(safe(label) for label in labels)
    if len(activity.waiting) > len(labels):
        text += f" and {len(activity.waiting) - len(labels)} more."
    else:
        # A label that ends like a sentence, as a question does, takes no second mark.
        text += ended(labels[-1])[len(labels[-1]) :]
    return f'<p class="sl-notice sl-info" role="status">Waiting until this is done: {text}</p>'
