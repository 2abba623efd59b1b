"""Text and conversations to token ids and back, with a document never able to speak as a marker.

Knows tokenizer files and chat templates; knows no network. Import names from here.
"""

from __future__ import annotations

from salalocal.tokenizer.messages import DOCUMENT_SYSTEM_PROMPT, Message, Prompt
from salalocal.tokenizer.stream import TextStream
from salalocal.tokenizer.tokenizer import Tokenizer

__all__ = ["DOCUMENT_SYSTEM_PROMPT", "Message", "Prompt", "TextStream", "Tokenizer"]
