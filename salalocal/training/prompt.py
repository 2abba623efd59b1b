"""How documents and questions are laid out in a training sequence: as the runtime's tokenizer lays out a chat.

The texts here repeat the runtime's (a test compares them); the training machine need not have what that imports.
"""

from __future__ import annotations

from salalocal.training.lexicon import Lexicon
from salalocal.training.vocabulary import TURN_END, TURN_START

SYSTEM_PROMPT = (
    "Answer the question from the documents. Quote the sentence that holds the answer, in quotation marks. "
    "If the documents do not say, say so."
)
DOCUMENTS_INTRO = "Documents:\n\n"
QUESTION_INTRO = "Question: "

_HEADERS = (
    "File: {f}\n\n",
    "File: {f}\n\n",
    "File: {f}\n\n",
    "File: {f}\n\n",
    "{f}\n\n",
    "{f}:\n",
    "--- {f} ---\n",
    "# {f}\n\n",
    "[{f}]\n",
    "Document: {f}\n\n",
)
_OTHER_SYSTEMS = ("You are a helpful assistant.", "Answer from the text.", "Answer briefly.")


def opening(lexicon: Lexicon) -> str:
    """Everything before the first document: system turn and the start of the first user turn."""
    system = SYSTEM_PROMPT if lexicon.flip(0.75) else lexicon.pick(*_OTHER_SYSTEMS)
    turn = f"{TURN_START}system\n{system}{TURN_END}\n" if lexicon.flip(0.92) else ""
    return f"{turn}{TURN_START}user\n{DOCUMENTS_INTRO if lexicon.flip(0.9) else ''}"


def header(lexicon: Lexicon) -> str:
    """The line before a document's text."""
    return lexicon.pick(*_HEADERS).replace("{f}", lexicon.file())


def first_question(question: str) -> str:
    """The rest of the first user turn after the documents, to where the first answer begins."""
    return f"{QUESTION_INTRO}{question}{TURN_END}\n{TURN_START}assistant\n"


def next_question(question: str, introduced: bool) -> str:
    """From the end of an answer (its end-of-turn token included) to where the next answer begins; `introduced` as a
    first question is, so that many questions of one sequence are put as most are at use."""
    intro = QUESTION_INTRO if introduced else ""
    return f"\n{TURN_START}user\n{intro}{question}{TURN_END}\n{TURN_START}assistant\n"
