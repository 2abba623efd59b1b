"""What an answer stands on: its quotes matched back to their places in the documents.

Knows words and passages. Knows no model and no file format.
"""

from __future__ import annotations

from salalocal.evidence.quote_index import QuoteIndex, QuoteMatch, match_quotes

__all__ = ["QuoteIndex", "QuoteMatch", "match_quotes"]
