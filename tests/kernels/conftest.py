"""What the tests of the ops share: random inputs with readable ids, and one measure of error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread: None) -> None:
    """In every test of this folder."""
