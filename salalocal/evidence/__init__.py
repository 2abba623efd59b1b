"""What an answer stands on: its quotes matched back to their places in the documents, and what was read for it.

Knows words and passages. Knows no model and no file format.
"""

from __future__ import annotations

from salalocal.evidence.excerpts import excerpts
from salalocal.evidence.quote_index import QuoteIndex, QuoteMatch, match_quotes, named_files
from salalocal.evidence.read_passages import FileTokens, ReadPassage, answered_in, read_passages

__all__ = [
    "FileTokens",
    "QuoteIndex",
    "QuoteMatch",
    "ReadPassage",
    "answered_in",
    "excerpts",
    "match_quotes",
    "named_files",
    "read_passages",
]
