"""Lets the tests of this folder import what they share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


# Interpreting and compiling these takes minutes: `pytest -m slow tests/kernels/gpu`.
_SLOW = (
    "block_scores",
    "compress_keys",
    "gather_rows",
    "lightning_decode",
    "lightning_prefill",
    "network",
    "norm_gate",
    "packed_linear",
    "qk_norm_rope",
    "rms_norm",
    "scaled_linear",
    "select_blocks",
    "sparse_attention_unions",
    "unpack_planes",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {f"test_{name}.py" for name in _SLOW}
    for item in items:
        if item.path.name in slow and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
