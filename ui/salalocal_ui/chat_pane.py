"""The right pane: questions, answers as they come, where their quotes stand, and what was read for them.

Turns turns into chat messages (pure functions) and builds the Gradio components; knows nothing of the engine.
The page sends only the question: the conversation stays on this side, so it can neither grow the requests nor be
changed by the browser. What an answer is followed by is a message of its own: an answer that leaves a code fence
open must not swallow it.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr
from gradio.components.chatbot import Message, MessageDict

import salalocal
from salalocal_ui.library_pane import notice_html
from salalocal_ui.state import Task, Turn, View
from salalocal_ui.wording import rate, safe, shortened, tokens

LONGEST_QUOTE = 160
LONGEST_PASSAGE = 400
LONGEST_PLACE = 200
LONGEST_QUESTION = 20_000

WAITING_FOR: dict[Task, str] = {
    "adding": "Waiting until the document is counted",
    "reading": "Waiting for the reading",
    "answering": "Waiting for the answer above",
    "tidying": "Waiting for a moment",
}

# No single dollar sign: documents are full of prices.
LATEX_DELIMITERS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": r"\[", "right": r"\]", "display": True},
    {"left": r"\(", "right": r"\)", "display": False},
]


@dataclass(frozen=True)
class ChatPane:
    """The components of the right pane."""

    chat: gr.Chatbot
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    new: gr.Button


def build(view: View) -> ChatPane:
    """Create the components inside the current Gradio layout."""
    chat = gr.Chatbot(
        chat_messages(view),
        label="Conversation",
        show_label=False,
        placeholder=placeholder(view),
        height="100%",
        min_height=280,
        layout="panel",
        buttons=["copy"],
        feedback_options=None,
        latex_delimiters=LATEX_DELIMITERS,
        sanitize_html=True,
        allow_tags=False,
        allow_file_downloads=False,
        elem_id="sl-chat",
    )
    with gr.Row(elem_classes="sl-ask-row"):
        question = gr.Textbox(
            label="Your question",
            placeholder="Ask about the documents",
            show_label=False,
            container=False,
            lines=1,
            max_lines=8,
            max_length=LONGEST_QUESTION,
            scale=1,
            autofocus=True,
            elem_id="sl-question",
        )
        send = gr.Button("Ask", variant="primary", scale=0, min_width=88, visible=True, elem_id="sl-send")
        stop = gr.Button("Stop", variant="secondary", scale=0, min_width=88, visible=False, elem_id="sl-stop")
    with gr.Row(elem_classes="sl-foot-row"):
        gr.HTML(
            '<p class="sl-faint sl-foot">Answers can be wrong. Quoted sentences are looked up in your documents; '
            "one that is not there is marked.</p>",
            elem_classes="sl-plain",
        )
        new = gr.Button("New conversation", variant="secondary", size="sm", scale=0, min_width=150, elem_id="sl-new")
    return ChatPane(chat, question, send, stop, new)


def placeholder(view: View) -> str:
    """What the empty conversation says to do."""
    if not view.items:
        return (
            "## Ask your documents\n"
            "Add a document, see how long it is, let the model read it, then ask. "
            "Everything stays on this computer."
        )
    if view.unread_tokens:
        return (
            "## Ready to read\n"
            "Press **Read** to have the documents read now and ask many questions afterwards, "
            "or ask straight away: what is unread is read first."
        )
    return "## Read to the end\nAsk what you want to know. Ask for quotes to see where they stand."


def answering(view: View) -> bool:
    """Whether Stop takes the place of Ask."""
    return view.activity is not None and view.activity.task == "answering"


def chat_messages(view: View) -> list[Message | MessageDict]:
    """The conversation as the Chatbot takes it."""
    messages: list[Message | MessageDict] = []
    for turn in view.turns:
        messages.append({"role": "user", "content": _plain(turn.question)})
        if turn.answer:
            messages.append({"role": "assistant", "content": turn.answer})
        elif not turn.finished:
            messages.append({"role": "assistant", "content": f'<p class="sl-thinking">{_thinking(turn, view)}</p>'})
        after = after_html(turn)
        if after:
            messages.append({"role": "assistant", "content": after})
    return messages


def _thinking(turn: Turn, view: View) -> str:
    """What stands where the answer will be, while there is none."""
    if not turn.waiting or view.activity is None:
        return "…"
    return WAITING_FOR[view.activity.task]


def after_html(turn: Turn) -> str:
    """The places of the quotes or of the whole answer, what was read for it, how it ended, and its figures."""
    parts = []
    if turn.quotes:
        rows = "".join(_quote_html(quote) for quote in turn.quotes)
        parts.append(f'<ul class="sl-quotes" aria-label="Places of the quotes">{rows}</ul>')
    if turn.place is not None:
        row = f"<li><q>{_passage_text(turn.place)}</q> {_place_html(turn.place)}</li>"
        parts.append(f'<ul class="sl-quotes">{row}</ul>')
    if turn.passages:
        parts.append(_passages_html(turn.passages))
    if turn.notice is not None:
        parts.append(notice_html(turn.notice))
    if turn.usage is not None:
        parts.append(f'<p class="sl-usage">{usage_line(turn.usage)}</p>')
    return f'<div class="sl-after">{"".join(parts)}</div>' if parts else ""


def _quote_html(quote: salalocal.QuoteMatch) -> str:
    # What stands above a place is what stands at that place, also where the answer says it differently.
    similar = quote.place is not None and quote.score < 1.0
    found = quote.found if similar else None
    text = safe(shortened(found or quote.text, LONGEST_QUOTE))
    marked = f"<q>{text}</q>" if quote.quoted or found else text
    if quote.place is None:
        return f'<li class="sl-missing">{marked} <span class="sl-place">not in the text</span></li>'
    place = safe(shortened(str(quote.place), LONGEST_PLACE))
    label = ' <span class="sl-similar">similar, not word for word</span>' if similar else ""
    return f'<li>{marked} <span class="sl-place">{place}{label}</span></li>'


def _passages_html(passages: Sequence[salalocal.ReadPassage]) -> str:
    """A closed list: it is for those who want to look closer. The browser's own element opens by keyboard too."""
    rows = "".join(
        f"<li>{_passage_text(passage)} {_place_html(passage)}{_share_html(passage.share)}</li>" for passage in passages
    )
    return (
        '<details class="sl-read"><summary>What was read for this answer</summary>'
        f"<ul>{rows}</ul>"
        '<p class="sl-faint">Shares of the attention that went to the documents. '
        "They show where the model looked, not that the answer is true.</p></details>"
    )


def _passage_text(passage: salalocal.ReadPassage) -> str:
    return safe(shortened(passage.text, LONGEST_PASSAGE))


def _place_html(passage: salalocal.ReadPassage) -> str:
    return f'<span class="sl-place">{safe(shortened(str(passage.place), LONGEST_PLACE))}</span>'


def _share_html(share: float) -> str:
    """A bar for the eye; the number says the same to everybody."""
    percent = f"{share:.0%}"
    bar = f'<span class="sl-share-bar"><span style="width:{percent}"></span></span>'
    return f'<span class="sl-share">{bar}{percent}</span>'


def usage_line(usage: salalocal.Usage) -> str:
    """'reused 998,112 tokens, read 120 · answered 45 tokens at 21.0 tokens/s'."""
    line = f"reused {tokens(usage.reused_tokens)}, read {usage.prompt_tokens - usage.reused_tokens:,}"
    if usage.completion_tokens and usage.decode_seconds > 0:
        line += f" · answered {tokens(usage.completion_tokens)} at "
        line += rate(usage.completion_tokens / usage.decode_seconds)
    return line


def _plain(text: str) -> str:
    """A question as typed: one line of HTML, so that Markdown in it stays text."""
    lines = "<br>".join(html.escape(line) for line in text.splitlines())
    return f'<div class="sl-asked">{lines}</div>'
