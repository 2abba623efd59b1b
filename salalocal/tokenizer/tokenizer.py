"""A model's tokenizer: text to ids, conversations and documents to a prompt, ids back to text.

Knows which ids are the model's own markers and keeps them out of everything that people and documents say.
Knows no network and no device.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from salalocal.documents import Document, SourceFile
from salalocal.errors import BadTokenizer, InvalidRequest
from salalocal.evidence import FileTokens, named_files
from salalocal.tokenizer.backend import Backend, build_backend
from salalocal.tokenizer.byte_tokens import CONTINUING_BYTES, SPACE_MARK
from salalocal.tokenizer.cutting import cut
from salalocal.tokenizer.folder import read_tokenizer_folder
from salalocal.tokenizer.gguf_spec import spec_from_gguf, token_id
from salalocal.tokenizer.messages import (
    DOCUMENT_SYSTEM_PROMPT,
    DOCUMENTS_INTRO,
    QUESTION_INTRO,
    Message,
    Prompt,
)
from salalocal.tokenizer.stream import TextStream, bytes_of
from salalocal.tokenizer.template import ChatTemplate, TemplateRefused

_PIECES_AT_ONCE = 64  # bounds what the encoder holds beside the ids
_KEPT_FILES = 1 << 16


class Tokenizer:
    """Encodes and decodes for one model. Built by `from_folder` or `from_gguf`.

    `vocab_size`: ids are below it. `eos_ids`: any of them ends an answer. `special_ids`: the added tokens,
    which text never yields. `chat_template`: the model's Jinja template, None where it has none.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        eos_ids: Iterable[int],
        bos_token: str | None,
        eos_token: str | None,
        chat_template: str | None,
    ) -> None:
        self._backend = backend
        self.vocab_size = len(backend.token_bytes)
        self.special_ids = backend.special_ids
        self.eos_ids = frozenset(eos_ids)
        self.chat_template = chat_template
        if beyond := [index for index in self.eos_ids if index >= self.vocab_size]:
            raise BadTokenizer(f"the end-of-text id {beyond[0]} is beyond the {self.vocab_size} tokens")
        self._bos_token = bos_token or ""
        self._template = (
            None if chat_template is None else ChatTemplate(chat_template, self._bos_token, eos_token or "")
        )
        self._added = re.compile("|".join(map(re.escape, sorted(backend.added, key=len, reverse=True))))
        self._stand_in = next((char for char in "\ufffd?" if not self._lacks(char)), None)
        if self._stand_in is None:
            raise BadTokenizer("the vocabulary has no token for U+FFFD nor for a question mark")
        self._encoded_files: dict[SourceFile, tuple[array[int], array[int]]] = {}

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a model folder: tokenizer.json, and where they are there tokenizer_config.json,
        chat_template.jinja, generation_config.json and config.json.

        Raises `BadTokenizer` naming the file that is missing, damaged or not supported.
        """
        files = read_tokenizer_folder(Path(path))
        backend = build_backend(files.spec, str(Path(path) / "tokenizer.json"))
        eos_ids = set(files.eos_ids)
        if files.eos_token is not None and files.eos_token in backend.added:
            eos_ids.add(backend.added[files.eos_token])
        return cls(
            backend,
            eos_ids=eos_ids,
            bos_token=files.bos_token,
            eos_token=files.eos_token,
            chat_template=files.chat_template,
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """The tokenizer inside a GGUF file's metadata (byte-level BPE, `tokenizer.ggml.model` "gpt2").

        Raises `BadTokenizer` naming the key that is missing, damaged or not supported.
        """
        spec = spec_from_gguf(metadata)
        tokens = list(spec["model"]["vocab"])
        ids = {name: token_id(metadata, name, len(tokens)) for name in ("bos", "eos", "eot", "eom")}
        template = metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise BadTokenizer("tokenizer.chat_template is no text")
        names = {name: None if index is None else tokens[index] for name, index in ids.items()}
        return cls(
            build_backend(spec, "the tokenizer in the GGUF file"),
            eos_ids=[index for name, index in ids.items() if index is not None and name != "bos"],
            bos_token=names["bos"],
            eos_token=names["eos"],
            chat_template=template,
        )

    def encode_text(self, text: str) -> list[int]:
        """The ids of `text` as plain text: no id of `special_ids`, whatever it says; nothing put around it.

        `decode(encode_text(text)) == text`, with two exceptions that are replaced by U+FFFD: lone
        surrogates, and characters whose UTF-8 has a byte that the vocabulary lacks. (A tokenizer.json with
        its own Unicode normalizer changes text further, as the model was trained.)

        Time and memory are linear: text of more than 65,536 characters is encoded in pieces. They are cut
        after a line end, before a space or before punctuation where there is one, which leaves the ids of
        the whole as they were for every pre-tokenizer of this module; a longer run of nothing of the kind
        is cut anywhere, and only the ids at the cuts differ.
        """
        clean = self._encodable(text)
        ids: list[int] = []
        if self._backend.byte_level or SPACE_MARK not in clean:
            self._encode_into(ids, clean)
            return ids
        # Byte fallback spells a space as U+2581; the character itself has to be spelt in bytes.
        vocab = self._backend.text_encoder.get_vocab()
        mark = [vocab[f"<0x{byte:02X}>"] for byte in SPACE_MARK.encode()]
        for index, part in enumerate(clean.split(SPACE_MARK)):
            ids.extend(mark if index else [])
            self._encode_into(ids, part)
        return ids

    def encode_document(self, document: Document) -> list[int]:
        """The ids of a document as a prompt holds them: each file a line with its path, then its text."""
        ids: list[int] = []
        for file in document.files:
            ids.extend(self._encode_file(file)[0])
        return ids

    def document_tokens(self, documents: Sequence[Document], at: int) -> list[FileTokens]:
        """Where the files of documents stand in a prompt that holds them from position `at` on."""
        found = []
        for name, file in named_files(documents):
            ids, ends = self._encode_file(file)
            found.append(FileTokens(name, file.spans, at, ends, self._characters[np.asarray(ids)]))
            at += len(ids)
        return found

    def encode_prompt(self, messages: Sequence[Message], documents: Sequence[Document] = ()) -> Prompt:
        """The prompt of a conversation, ending where the assistant begins to speak.

        Documents stand at the start of the first user message, in the order given, before the user's own
        words. With documents and no system message, `DOCUMENT_SYSTEM_PROMPT` is the system message. The
        template's words are encoded with the model's markers, contents and documents by `encode_text`, and
        the ids are joined; no text can end a message or begin another.

        Raises `InvalidRequest` when there is no message, or documents without a user message;
        `BadTokenizer` when the template fails, or does not take these roles.
        """
        turns = list(messages)
        if documents and not any(turn.role == "system" for turn in turns):
            turns.insert(0, Message("system", DOCUMENT_SYSTEM_PROMPT))
        asked = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
        if not turns or (documents and asked is None):
            raise InvalidRequest("a prompt needs a message, and documents a user message that they belong to")
        try:
            pieces, preamble = self._layout([turn.role for turn in turns]), ""
        except TemplateRefused:
            # Some templates take no system message; its text then opens the first user message.
            if asked != 1 or turns[0].role != "system":
                raise
            preamble = turns.pop(0).content + "\n\n"
            pieces, asked = self._layout([turn.role for turn in turns]), 0
        ids: list[int] = []
        stable_tokens = documents_at = 0
        for index, turn in enumerate(turns):
            self._encode_template_into(ids, pieces[index], after_text=index > 0)
            content = turn.content
            if index == asked:
                ids.extend(self.encode_text(preamble))
                if documents:
                    ids.extend(self.encode_text(DOCUMENTS_INTRO))
                    documents_at = len(ids)
                    for document in documents:
                        ids.extend(self.encode_document(document))
                    content = QUESTION_INTRO + content
                stable_tokens = len(ids)
            ids.extend(self.encode_text(content))
        self._encode_template_into(ids, pieces[-1], after_text=True)
        return Prompt(ids, stable_tokens, documents_at)

    def decode(self, ids: Iterable[int], *, with_special: bool = False) -> str:
        """The text of `ids`; markers are left out, or with `with_special` shown as they are written.

        Bytes that are no UTF-8 and ids without a token come out as U+FFFD.
        """
        skipped = () if with_special else self._backend.skipped_ids
        table = self._backend.token_bytes
        joined = b"".join(bytes_of(table, index) for index in ids if index not in skipped)
        return joined.decode("utf-8", "replace")

    def stream(self) -> TextStream:
        """A new `TextStream`, for the text of one answer as it is generated."""
        return TextStream(self._backend.token_bytes, self._backend.skipped_ids)

    @cached_property
    def _characters(self) -> NDArray[np.uint16]:
        """How many characters begin in each id: its bytes, less those that continue a character."""
        counts = [len(piece.translate(None, CONTINUING_BYTES)) for piece in self._backend.token_bytes]
        return np.array(counts, dtype=np.uint16)

    def _lacks(self, text: str) -> bool:
        missing = self._backend.missing
        return bool(missing) and not missing.isdisjoint(text.encode())

    def _encodable(self, text: str) -> str:
        """`text` without lone surrogates and without characters that the vocabulary cannot spell."""
        if not text.isascii():
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if self._lacks(text):
            text = text.translate({ord(char): self._stand_in for char in set(text) if self._lacks(char)})
        return text

    def _encode_into(self, ids: list[int], text: str) -> None:
        pieces = cut(text)
        for first in range(0, len(pieces), _PIECES_AT_ONCE):
            batch = pieces[first : first + _PIECES_AT_ONCE]
            for encoding in self._backend.text_encoder.encode_batch_fast(batch, add_special_tokens=False):
                ids.extend(encoding.ids)

    def _encode_template_into(self, ids: list[int], piece: str, *, after_text: bool) -> None:
        """Encodes a template's own words; what stands before the first marker continues the text before it."""
        match = self._added.search(piece) if self._backend.added else None
        start = 0
        if after_text:
            start = match.start() if match else len(piece)
            ids.extend(self.encode_text(piece[:start]))
        if start < len(piece):
            ids.extend(self._backend.template_encoder.encode(piece[start:], add_special_tokens=False).ids)

    def _encode_file(self, file: SourceFile) -> tuple[array[int], array[int]]:
        """The ids of one file, and where the line with its path and each of its spans end among them.

        Kept: the next question about the same library does not encode it again.
        """
        kept = self._encoded_files.get(file)
        if kept is None:
            ids = self.encode_text(f"File: {file.path}\n\n")
            ends = [len(ids)]
            for index, span in enumerate(file.spans):
                last = index + 1 == len(file.spans)
                gap = "" if span.text.endswith("\n") else "\n"
                ids.extend(self.encode_text(span.text + gap + ("\n" if last else "")))
                ends.append(len(ids))
            if len(self._encoded_files) >= _KEPT_FILES:
                self._encoded_files.pop(next(iter(self._encoded_files)), None)
            kept = self._encoded_files[file] = (array("i", ids), array("i", ends))
        return kept

    def _layout(self, roles: Sequence[str]) -> tuple[str, ...]:
        if self._template is not None:
            return self._template.layout(roles)
        return default_layout(roles, self._backend.added, self._bos_token)


def default_layout(roles: Sequence[str], added: Mapping[str, int], bos_token: str) -> tuple[str, ...]:
    """The pieces around messages for a model without a chat template.

    ChatML where the model has its two markers; else the beginning-of-text token and plain "User:" and
    "Assistant:" paragraphs, a system message as a paragraph of its own.
    """
    if {"<|im_start|>", "<|im_end|>"} <= added.keys():
        opening = [f"<|im_start|>{role}\n" for role in (*roles, "assistant")]
        closing = "<|im_end|>\n"
    else:
        names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
        opening = [*(names[role] for role in roles), "Assistant:"]
        opening[0] = bos_token + opening[0]
        closing = "\n\n"
    return (opening[0], *(closing + words for words in opening[1:]))
