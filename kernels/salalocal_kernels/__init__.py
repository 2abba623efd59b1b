"""The ops of the network, one name each; this is the only place that picks an implementation.

`ref/` defines every op in plain PyTorch and runs on any device. `cpu/` and `gpu/` hold the same ops made for one kind
of device; where one exists, the name below is a dispatcher. `implementations` says what serves.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from salalocal_kernels.cpu import sparse_attention as _cpu_sparse
from salalocal_kernels.ref import attention as _ref_attention
from salalocal_kernels.ref.attention import dense_attention, sparse_attention_decode
from salalocal_kernels.ref.block_scores import block_scores
from salalocal_kernels.ref.compress_keys import compress_keys
from salalocal_kernels.ref.lightning import lightning_decode, lightning_prefill, lightning_slopes
from salalocal_kernels.ref.linear import linear
from salalocal_kernels.ref.rms_norm import rms_norm
from salalocal_kernels.ref.rope import rope
from salalocal_kernels.ref.select_blocks import select_blocks
from salalocal_kernels.ref.token_mass import token_mass

__all__ = [
    "OPS",
    "block_scores",
    "compress_keys",
    "dense_attention",
    "implementations",
    "lightning_decode",
    "lightning_prefill",
    "lightning_slopes",
    "linear",
    "rms_norm",
    "rope",
    "select_blocks",
    "sparse_attention_decode",
    "sparse_attention_prefill",
    "token_mass",
]


def sparse_attention_prefill(
    q: Tensor, pages: Tensor, page_table: Tensor, blocks: Tensor, first_position: int, scale: float
) -> Tensor:
    """`ref.attention.sparse_attention_prefill`; on a processor block by block."""
    return _sparse_prefill_for(q.device.type)(q, pages, page_table, blocks, first_position, scale)


def _sparse_prefill_for(device_type: str) -> Callable[..., Tensor]:
    on_cpu = device_type == "cpu"
    return _cpu_sparse.sparse_attention_prefill if on_cpu else _ref_attention.sparse_attention_prefill


OPS = (
    block_scores,
    compress_keys,
    dense_attention,
    lightning_decode,
    lightning_prefill,
    linear,
    rms_norm,
    rope,
    select_blocks,
    sparse_attention_decode,
    sparse_attention_prefill,
    token_mass,
)


def implementations(device_type: str) -> dict[str, str]:
    """Which implementation serves each op on such a device ("cpu", "cuda"): its name -> the module that runs."""
    serving = {op.__name__: op.__module__ for op in OPS}
    serving["sparse_attention_prefill"] = _sparse_prefill_for(device_type).__module__
    return serving
