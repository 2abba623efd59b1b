"""What goes into a prompt and what comes out: messages, ids, and the words put around documents.

Knows no tokenizer and no template.
"""

from __future__ import annotations

from dataclasses import dataclass

from salalocal.errors import InvalidRequest

ROLES = ("system", "user", "assistant")

DOCUMENT_SYSTEM_PROMPT = (
    "Answer the question from the documents. Quote the sentence that holds the answer, in quotation marks. "
    "If the documents do not say, say so."
)
"""The system message of a conversation about documents that brings none of its own.

Chosen by asking SmolLM2-135M-Instruct twelve questions about one page, in float32, greedily. With the
documents and QUESTION_INTRO in the first user message, 8 answers held the fact (6 with the model's own
default system message, 3 without QUESTION_INTRO); with the documents inside the system message it was 5.
"""

DOCUMENTS_INTRO = "Documents:\n\n"
QUESTION_INTRO = "Question: "


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is "system", "user" or "assistant".

    Raises `InvalidRequest` for another role: roles are written into the template's own text.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest(f"the role {self.role!r} is not known; it must be one of {', '.join(ROLES)}")


@dataclass(frozen=True)
class Prompt:
    """An encoded prompt.

    `ids` are all of it, up to where the assistant begins to speak. The first `stable_tokens` of them come
    before the first user's own words: template, system message and documents. They depend on nothing that
    is asked later, so what was computed for them holds for every question about the same documents. The documents
    begin at `documents_at`.
    """

    ids: list[int]
    stable_tokens: int
    documents_at: int = 0
