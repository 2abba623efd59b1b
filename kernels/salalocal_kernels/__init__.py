"""The ops of the network, one name each; this is the only place that picks an implementation.

`ref/` defines every op in plain PyTorch and runs on any device. `cpu/` and `gpu/` hold the same ops made for one kind
of device. The table below says which there are; `coverage` what a kernel takes, `dispatch` how one of them is chosen.
"""

from __future__ import annotations

from salalocal_kernels import coverage as _coverage
from salalocal_kernels.cpu import sparse_attention as _cpu_sparse
from salalocal_kernels.dispatch import Op, Served, watch
from salalocal_kernels.ref import attention as _attention
from salalocal_kernels.ref import lightning as _lightning
from salalocal_kernels.ref import packed_linear as _packed
from salalocal_kernels.ref.add_rms_norm import add_rms_norm as _add_rms_norm
from salalocal_kernels.ref.advance import advance as _advance
from salalocal_kernels.ref.append_token import append_token as _append_token
from salalocal_kernels.ref.block_scores import block_scores as _block_scores
from salalocal_kernels.ref.compress_keys import compress_keys as _compress_keys
from salalocal_kernels.ref.extend_compressed_keys import extend_compressed_keys as _extend_compressed_keys
from salalocal_kernels.ref.fetch_blocks import HostPages, SlotPool
from salalocal_kernels.ref.fetch_blocks import fetch_blocks as _fetch_blocks
from salalocal_kernels.ref.gather_rows import gather_rows as _gather_rows
from salalocal_kernels.ref.greedy_token import greedy_token as _greedy_token
from salalocal_kernels.ref.kv_codes import pack_pages as _pack_pages
from salalocal_kernels.ref.kv_codes import strip_bytes
from salalocal_kernels.ref.kv_codes import unpack_pages as _unpack_pages
from salalocal_kernels.ref.lightning import lightning_slopes
from salalocal_kernels.ref.lightning_step import lightning_step as _lightning_step
from salalocal_kernels.ref.linear import linear as _linear
from salalocal_kernels.ref.norm_gate import norm_gate as _norm_gate
from salalocal_kernels.ref.planes import Planes, to_planes
from salalocal_kernels.ref.planes import plane_codes as _plane_codes
from salalocal_kernels.ref.planes import plane_values as _plane_values
from salalocal_kernels.ref.qk_norm_rope import qk_norm_rope as _qk_norm_rope
from salalocal_kernels.ref.quantize_tokens import quantize_tokens as _quantize_tokens
from salalocal_kernels.ref.random_uniform import random_uniform as _random_uniform
from salalocal_kernels.ref.rms_norm import rms_norm as _rms_norm
from salalocal_kernels.ref.rope import rope as _rope
from salalocal_kernels.ref.rope import rope_table as _rope_table
from salalocal_kernels.ref.scaled_linear import scaled_linear as _scaled_linear
from salalocal_kernels.ref.select_blocks import select_blocks as _select_blocks
from salalocal_kernels.ref.silu_mul import silu_mul as _silu_mul
from salalocal_kernels.ref.silu_mul import silu_mul_codes as _silu_mul_codes
from salalocal_kernels.ref.token_mass import token_mass as _token_mass
from salalocal_kernels.ref.write_token import write_token as _write_token

__all__ = [
    "OPS",
    "HostPages",
    "Op",
    "Planes",
    "Served",
    "SlotPool",
    "add_rms_norm",
    "advance",
    "append_token",
    "block_scores",
    "compress_keys",
    "dense_attention",
    "extend_compressed_keys",
    "fetch_blocks",
    "gather_rows",
    "greedy_token",
    "implementations",
    "lightning_decode",
    "lightning_prefill",
    "lightning_slopes",
    "lightning_step",
    "linear",
    "norm_gate",
    "pack_pages",
    "packed_linear",
    "packed_silu_mul",
    "plane_codes",
    "plane_values",
    "qk_norm_rope",
    "quantize_tokens",
    "random_uniform",
    "rms_norm",
    "rope",
    "rope_table",
    "scaled_linear",
    "select_blocks",
    "silu_mul",
    "silu_mul_codes",
    "sparse_attention_decode",
    "sparse_attention_prefill",
    "strip_bytes",
    "to_planes",
    "token_mass",
    "unpack_pages",
    "watch",
    "write_token",
]

# Norms, positions, gates.
rms_norm = Op(_rms_norm, gpu="rms_norm", lacks=_coverage.floats)
add_rms_norm = Op(_add_rms_norm, gpu="rms_norm", lacks=_coverage.floats)
rope = Op(_rope)
rope_table = Op(_rope_table, gpu="rope_table", lacks=_coverage.rope_table)
qk_norm_rope = Op(_qk_norm_rope, gpu="qk_norm_rope", lacks=_coverage.floats)
norm_gate = Op(_norm_gate, gpu="norm_gate", lacks=_coverage.floats)
silu_mul = Op(_silu_mul, gpu="silu_mul", lacks=_coverage.silu_mul)
# Linear attention.
lightning_prefill = Op(_lightning.lightning_prefill, gpu="lightning_prefill", lacks=_coverage.lightning)
lightning_decode = Op(_lightning.lightning_decode, gpu="lightning_decode", lacks=_coverage.lightning)
lightning_step = Op(_lightning_step, gpu="lightning_step", lacks=_coverage.lightning_step)
# Attention over blocks.
compress_keys = Op(_compress_keys, gpu="compress_keys", lacks=_coverage.floats)
extend_compressed_keys = Op(
    _extend_compressed_keys, gpu="extend_compressed_keys", lacks=_coverage.extend_compressed_keys
)
append_token = Op(_append_token, gpu="append_token", lacks=_coverage.append_token)
block_scores = Op(_block_scores, gpu="block_scores", lacks=_coverage.block_scores)
select_blocks = Op(_select_blocks, gpu="select_blocks", lacks=_coverage.select_blocks)
sparse_attention_prefill = Op(
    _attention.sparse_attention_prefill,
    cpu=_cpu_sparse.sparse_attention_prefill,
    gpu="sparse_attention_unions",
    lacks=_coverage.sparse_attention,
)
sparse_attention_decode = Op(
    _attention.sparse_attention_decode, gpu="sparse_attention_decode", lacks=_coverage.sparse_attention
)
token_mass = Op(_token_mass)
dense_attention = Op(_attention.dense_attention, gpu="dense_attention")
# K and V in host memory.
fetch_blocks = Op(_fetch_blocks, gpu="fetch_blocks", lacks=_coverage.fetch_blocks)
write_token = Op(_write_token, gpu="write_token", lacks=_coverage.write_token)
pack_pages = Op(_pack_pages, gpu="kv_codes", lacks=_coverage.pack_pages)
unpack_pages = Op(_unpack_pages, gpu="kv_codes", lacks=_coverage.unpack_pages, decides=2)
# Sampling.
greedy_token = Op(_greedy_token, gpu="greedy_token", lacks=_coverage.greedy_token)
random_uniform = Op(_random_uniform, gpu="random_uniform")
advance = Op(_advance, gpu="advance")
# Weights.
linear = Op(_linear)
gather_rows = Op(_gather_rows, gpu="gather_rows", lacks=_coverage.gather_rows, decides=2)
packed_linear = Op(_packed.packed_linear, gpu="packed_linear", lacks=_coverage.packed_linear)
packed_silu_mul = Op(_packed.packed_silu_mul, gpu="packed_linear", lacks=_coverage.packed_silu_mul)
plane_values = Op(_plane_values, gpu="unpack_planes", lacks=_coverage.plane_values)
plane_codes = Op(_plane_codes, gpu="unpack_planes", lacks=_coverage.plane_codes)
silu_mul_codes = Op(_silu_mul_codes, gpu="silu_mul", lacks=_coverage.silu_mul_codes)
quantize_tokens = Op(_quantize_tokens, gpu="quantize_tokens", lacks=_coverage.eight_bits)
scaled_linear = Op(_scaled_linear, gpu="scaled_linear", lacks=_coverage.eight_bits)

OPS: tuple[Op[..., object], ...] = tuple(op for op in globals().values() if isinstance(op, Op))


def implementations(device_type: str) -> dict[str, str]:
    """Which implementation serves each op on such a device ("cpu", "cuda"): its name -> the module that runs.

    On a GPU this is for arguments that its kernel takes; `watch` tells what did run.
    """
    return {op.name: op.module_on(device_type) for op in OPS}
