"""The package's list of ops and who serves them."""

from __future__ import annotations

import salalocal_kernels


def test_every_op_of_the_network_is_listed_once() -> None:
    names = [op.__name__ for op in salalocal_kernels.OPS]
    assert sorted(names) == sorted(set(names))
    assert set(names) >= {
        "lightning_prefill", "lightning_decode", "compress_keys", "block_scores", "select_blocks",
        "sparse_attention_prefill", "sparse_attention_decode", "rms_norm", "rope", "linear",
    }  # fmt: skip


def test_implementations_name_the_modules_that_run() -> None:
    serving = salalocal_kernels.implementations()
    assert serving["rope"] == "salalocal_kernels.ref.rope"
    assert all(getattr(salalocal_kernels, name).__module__ == module for name, module in serving.items())
