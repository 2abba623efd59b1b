"""Files, folders and archives read into text that knows its place.

Knows how bytes on disk become text with a file, page or line, and what was left out and why. Knows no
tokens, no model and no torch.
"""

from __future__ import annotations

from salalocal.documents.document import Document, Place, Skipped, SourceFile, Span
from salalocal.documents.reader import read

__all__ = ["Document", "Place", "Skipped", "SourceFile", "Span", "read"]
