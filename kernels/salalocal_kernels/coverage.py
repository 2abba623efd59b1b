"""Which arguments the kernels take: for every op with limits a function of its arguments that says what is wrong.

"" where nothing is. Float64 is not asked about: it never reaches a kernel. Sizes are those the kernels are compiled for
in the tests; larger heads would not fit into a block's shared memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from salalocal_kernels.ref.fetch_blocks import HostPages, SlotPool
from salalocal_kernels.ref.planes import Planes

_FLOATS = (torch.bfloat16, torch.float32, torch.float16)
_LARGEST_HEAD = 128
_LARGEST_BLOCK = 128
_MOST_BLOCKS = 1 << 16
_MOST_PICKS = 1 << 13
_MOST_MATRICES = 4
_MOST_FETCHED = 1 << 12


def block_scores(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    first_position: int | Tensor,
    scale: float,
    kernel_stride: int,
    block_size: int,
    num_blocks: int,
) -> str:
    del first_position, scale
    too_far = num_blocks * (block_size // kernel_stride) * k1.stride(1) >= 1 << 31
    return _alike(q, k1, k2) or _head(q) or ("compressed keys beyond 2^31 elements" if too_far else "")


def select_blocks(scores: Tensor, *_: object) -> str:
    if scores.dtype != torch.float32:
        return f"scores in {scores.dtype}"
    return f"{scores.shape[-1]} blocks" if scores.shape[-1] > _MOST_BLOCKS else ""


def sparse_attention(q: Tensor, pages: Tensor, page_table: Tensor, blocks: Tensor, *_: object) -> str:
    """Of prefill and decode, which alone takes a page table per kv head."""
    size, picks = pages.shape[3], blocks.shape[-1]
    if size > _LARGEST_BLOCK or size < 16 or size & (size - 1):
        return f"blocks of {size} tokens"
    if q.ndim == 3 and picks > _MOST_PICKS // 8:
        return f"{picks} blocks for each query"
    if page_table.stride(-1) != 1 or (q.ndim == 3 and blocks.stride(-1) != 1):
        return "a page table or block list with gaps"
    return _alike(q, pages) or _head(q)


def extend_compressed_keys(pages: Tensor, page_table: Tensor, fine: Tensor, coarse: Tensor, *_: object) -> str:
    del page_table
    return _alike(pages, fine, coarse)


def append_token(
    pages: Tensor,
    page_table: Tensor,
    fine: Tensor | None,
    coarse: Tensor | None,
    position: int | Tensor,
    key: Tensor,
    value: Tensor,
    kernel_stride: int,
) -> str:
    del page_table, position, kernel_stride
    return _alike(pages, *(x for x in (fine, coarse) if x is not None), key, value)


def fetch_blocks(
    blocks: Tensor, page_table: Tensor, length: int | Tensor, host: HostPages, pool: SlotPool, *_: object
) -> str:
    del page_table, length
    if blocks.numel() > _MOST_FETCHED:
        return f"{blocks.numel()} blocks at once"
    if host.codes is not None and pool.slots.dtype not in _FLOATS:
        return f"slots in {pool.slots.dtype}"
    return _in_host(host) or ("" if pool.slots[0].nbytes % 16 == 0 else "slots that are no multiple of 16 bytes")


def write_token(
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    slot_table: Tensor,
    position: int | Tensor,
    host: HostPages,
    pool: SlotPool,
) -> str:
    del page_table, slot_table, position
    return _in_host(host) or _alike(keys, values, pool.slots)


def pack_pages(pages: Tensor, codes: torch.dtype) -> str:
    del codes
    return _kinds(pages) or ("" if pages.is_contiguous() else "pages with gaps")


def unpack_pages(strips: Tensor, codes: torch.dtype, pages: Tensor) -> str:
    return ("" if strips.is_contiguous() else "strips with gaps") or pack_pages(pages, codes)


def lightning(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float, state: Tensor) -> str:
    """Of lightning_prefill and lightning_decode."""
    del slopes, scale
    return _kinds(q, k, v) or _head(q) or _head(v) or _state(state)


def lightning_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    table: Tensor | None,
    slopes: Tensor,
    scale: float,
    state: Tensor,
    *_: object,
) -> str:
    del q_weight, k_weight, table
    return lightning(q, k, v, slopes, scale, state)


def gather_rows(table: Tensor, scales: Tensor | None, ids: Tensor, factor: float, dtype: torch.dtype) -> str:
    del factor
    if dtype not in _FLOATS:
        return str(dtype)
    if table.device != ids.device and not table.is_pinned():
        return "a table in memory that the GPU cannot read"
    has_gaps = table.stride(1) != 1 or (scales is not None and scales.stride(1) != 1)
    return "a table with gaps in its rows" if has_gaps else ""


def packed_linear(x: Tensor, matrices: Sequence[Planes]) -> str:
    zeros = {matrix.zeros is not None for matrix in matrices if matrix.bits == 4}
    if not 1 <= len(matrices) <= _MOST_MATRICES:
        return f"{len(matrices)} matrices at once"
    if len({matrix.group_size for matrix in matrices}) > 1 or len(zeros) > 1:
        return "matrices of different groups or zero points"
    return _kinds(x)


def packed_silu_mul(x: Tensor, gate: Planes, up: Planes) -> str:
    return "matrices of different groups" if gate.group_size != up.group_size else _kinds(x)


def rope_table(positions: Tensor, dim: int, theta: float, dtype: torch.dtype = torch.float32) -> str:
    del dim, theta
    return str(dtype) if dtype != torch.float32 else "positions with gaps" if positions.stride(0) != 1 else ""


def greedy_token(logits: Tensor) -> str:
    return _alike(logits)


def plane_values(matrix: Planes, dtype: torch.dtype, out: Tensor | None = None) -> str:
    del matrix, out
    return "" if dtype in _FLOATS else str(dtype)


def plane_codes(matrix: Planes, row_scales: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> str:
    del row_scales, out
    return _fp8(dtype, matrix.device)


def silu_mul(gate: Tensor, up: Tensor, out: Tensor | None = None) -> str:
    return _alike(gate, up) if out is None else _alike(gate, up, out)


def silu_mul_codes(gate: Tensor, up: Tensor, dtype: torch.dtype) -> str:
    return _alike(gate, up) or _fp8(dtype, gate.device)


def eight_bits(x: Tensor, dtype: torch.dtype | Tensor, *_: object) -> str:
    """Of quantize_tokens(x, dtype) and scaled_linear(x codes, ...)."""
    return _fp8(dtype if isinstance(dtype, torch.dtype) else x.dtype, x.device)


def floats(x: Tensor, *_: object) -> str:
    """Of ops whose kernels take any sizes."""
    return _kinds(x)


def _fp8(codes: torch.dtype, device: torch.device) -> str:
    return "fp8 on a card older than sm_89" if codes != torch.int8 and _capability(device) < (8, 9) else ""


def _in_host(host: HostPages) -> str:
    return "" if host.is_readable else "host memory that the GPU cannot read"


def _kinds(*tensors: Tensor) -> str:
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1:
        return f"dtypes {', '.join(sorted(map(str, kinds)))} together"
    return "" if tensors[0].dtype in _FLOATS else str(tensors[0].dtype)


def _alike(*tensors: Tensor) -> str:
    """One dtype, and channels adjacent in memory."""
    return _kinds(*tensors) or ("channels with gaps" if any(x.stride(-1) != 1 for x in tensors) else "")


def _head(x: Tensor) -> str:
    dim = x.shape[-1]
    return f"heads of {dim} channels" if dim > _LARGEST_HEAD or dim < 8 or dim & (dim - 1) else ""


def _state(state: Tensor) -> str:
    return "" if state.dtype == torch.float32 and state.is_contiguous() else f"a state in {state.dtype} or with gaps"


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
