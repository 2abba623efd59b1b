"""Documents in a prompt, and attention given to words of them."""

from __future__ import annotations

import numpy as np

from salalocal.documents import Document, SourceFile, Span
from salalocal.evidence import ReadPassage, read_passages
from salalocal.tokenizer import Tokenizer

AT = 5  # where the documents begin in the prompt


def document(name: str = "shelf", **files: str | tuple[Span, ...]) -> Document:
    """Files of one span that starts at line 1, or of the spans given."""
    return Document(
        name,
        tuple(
            SourceFile(path, (Span(content, line=1),) if isinstance(content, str) else content)
            for path, content in files.items()
        ),
    )


class Reading:
    """Documents in a prompt, and the attention that goes to each of its tokens."""

    def __init__(self, tokenizer: Tokenizer, *documents: Document) -> None:
        self._tokenizer = tokenizer
        self.files = tokenizer.document_tokens(documents, AT)
        self._ids = [*[0] * AT, *(token for one in documents for token in tokenizer.encode_document(one))]
        # A question follows; what goes there and to what precedes the documents is no document's.
        self.mass = np.zeros(len(self._ids) + 9)
        self.mass[:AT] = self.mass[len(self._ids) :] = 50.0

    def tokens(self, file: int, span: int) -> list[tuple[int, int]]:
        """(position in the prompt, last character) of every token of a span."""
        known = self.files[file]
        begin, end = known.start + known.ends[span], known.start + known.ends[span + 1]
        last = len(known.spans[span].text) - 1
        found, whole, before = [], begin, 0  # what precedes position `whole` are `before` characters, none in part
        for position in range(begin, end):
            text = self._tokenizer.decode(self._ids[whole : position + 1])
            found.append((position, min(before + len(text) - 1, last)))
            if not text.endswith("\ufffd"):
                whole, before = position + 1, before + len(text)
        return found

    def look(self, words: str, weight: float = 1.0, *, file: int = 0, span: int = 0) -> list[int]:
        """Shares `weight` out among the tokens of `words`, which stand once in that span; returns their positions."""
        text = self.files[file].spans[span].text
        assert text.count(words) == 1, words
        low = text.index(words)
        positions = [at for at, char in self.tokens(file, span) if low <= char < low + len(words)]
        self.mass[positions] += weight / len(positions)
        return positions

    def found(self) -> tuple[ReadPassage, ...]:
        return read_passages(self.mass, self.files)
