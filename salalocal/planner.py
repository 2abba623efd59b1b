"""What fits where, computed before anything is allocated. Knows sizes only: no torch, no files, no time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from salalocal.config import ModelConfig
from salalocal.errors import DoesNotFit, InvalidRequest
from salalocal.quantization import best_group_size, recipe
from salalocal.weights.layout import parameter_count, table_bytes, weight_bytes

# What a product with a packed matrix holds at most while it is unpacked in slices.
_DEQUANTIZE_BYTES = 256 << 20
# Tokens that the feed-forward takes at once: all channels of theirs; where every byte counts, in 8 bits. Fewer would
# unpack matrices more often. Where every byte counts and products are in 16 bits, so many channels of all tokens.
SLICE_TOKENS, NARROW_SLICE_TOKENS, _LEAN_CHANNELS = 8192, 4096, 2048
# In which its last product is then made.
_LEAN_PARTS = 4
# Scores of queries on blocks that are there at once, of each kv head.
TILE_SCORES = 1 << 24
# Of a block that a query reads, in what neighbouring queries read together.
_UNITED_BYTES = 8
# What small tensors, products' own workspaces and the allocator's roundings take in a lean workspace.
_LEAN_SPARE_BYTES = 128 << 20
# In 8 bits tensors of three sizes take turns, and the allocator has lost as much again between them.
_NARROW_SPARE_BYTES = 256 << 20
# What CUDA itself takes on a card before the first tensor.
_CUDA_CONTEXT_BYTES = 1 << 29
_GPU_CHUNK_TOKENS = 8192
_LEAST_GPU_CHUNK_TOKENS = 2048
_AMPLE_KV_BYTES = 160 << 20
# Of a budget for K/V each of the two buffers takes a third, and the slots the rest: what a text's history exceeds the
# buffers by, its attention waits for; slots need to hold a few times what one step reads. Ample buffers leave the next
# of it to slots until those are ample too, and no buffer is larger than what a bus brings in 20 ms.
_STAGED_SHARE = 3
_AMPLE_STAGED_BYTES = 256 << 20
_AMPLE_SLOTS_BYTES = 1 << 30
_MOST_STAGED_BYTES = 1 << 30
# Pages of 8-bit codes that are on the device at once, on their way into a buffer: 16 MiB of the released model's.
_STRIP_PAGES = 512
# How K and V may be kept in host memory.
KV_KINDS = ("full", "int8", "fp8")
# What a card shared between K/V and compressed keys is to have room for.
LONG_CONTEXT_TOKENS = 1 << 20
# On a CPU about a second of work, so that progress moves and cancel is heard. Larger chunks gain nothing there.
_CPU_FLOP_PER_SECOND = 1e11
_CPU_CHUNK_TOKENS = (256, 2048)


@dataclass(frozen=True)
class Footprint:
    """Bytes a loaded model and its contexts take.

    Attributes:
        weight_bytes: all tensors.
        token_bytes: K/V and compressed keys per token of context.
        session_bytes: linear states of one session, whatever its length.
        workspace_bytes: largest temporaries of one chunk.
        compressed_token_bytes: the compressed keys' part of `token_bytes`.
        streaming_bytes: what a chunk takes besides `workspace_bytes` where K/V is in host memory.
        feed_channels: of gate and up that the feed-forward has at once; None for all.
        has_host_table: the embedding table is in host memory, and not in `weight_bytes`.
        host_token_bytes: K/V per token there.
    """

    weight_bytes: int
    token_bytes: float
    session_bytes: int
    workspace_bytes: int
    compressed_token_bytes: float = 0.0
    streaming_bytes: int = 0
    feed_channels: int | None = None
    has_host_table: bool = False
    host_token_bytes: float = 0.0

    def context_bytes(self, tokens: int) -> int:
        """Bytes of one session of `tokens` tokens, weights left out."""
        return int(self.token_bytes * tokens) + self.session_bytes + self.workspace_bytes

    def kv_bytes(self, tokens: int) -> int:
        """The part of `context_bytes` that K and V take."""
        return int(self.token_bytes * tokens) - self.compressed_bytes(tokens)

    def compressed_bytes(self, tokens: int) -> int:
        """The part of `context_bytes` that compressed keys take."""
        return int(self.compressed_token_bytes * tokens)

    def total_bytes(self, tokens: int) -> int:
        """Bytes of the weights and one session of `tokens` tokens."""
        return self.weight_bytes + self.context_bytes(tokens)

    def longest_tiered(self, device_bytes: int, host_bytes: int) -> int:
        """Tokens of one session whose K/V is in host memory and whose compressed keys are on the device; 0 if none.

        Args:
            device_bytes: free beside weights, slots and buffers.
            host_bytes: free.
        """
        left = device_bytes - self.session_bytes - self.workspace_bytes - self.streaming_bytes
        by_device = max(0, int(left / self.compressed_token_bytes))
        return min(by_device, max(0, int(host_bytes / self.host_token_bytes)))

    def longest_context(self, available_bytes: int) -> int:
        """Tokens of one session that fit into `available_bytes` beside the weights already loaded; 0 if none."""
        left = available_bytes - self.session_bytes - self.workspace_bytes
        return max(0, int(left / self.token_bytes)) if self.token_bytes else max(0, left) and 1 << 40


def footprint(
    config: ModelConfig,
    item_bytes: int,
    chunk_tokens: int,
    *,
    unpack: bool = False,
    is_lean: bool = False,
    is_narrow: bool = False,
) -> Footprint:
    """Computes the footprint of `config` with activations, K/V and unpacked weights of `item_bytes` each.

    Args:
        config: the model.
        item_bytes: 2 for bfloat16, 4 for float32, 8 for float64.
        chunk_tokens: tokens of a prefill chunk.
        unpack: packed matrices are turned into plain ones when they are read.
        is_lean: on a GPU that has hardly room for the weights: the feed-forward has fewer numbers at once, the
            embedding table stays in host memory unless it is the head too, and the workspace is counted by tensors.
        is_narrow: long chunks multiply in 8 bits; this counts where it is lean.
    """
    channels = config.num_key_value_heads * config.sparse_head_dim
    compressed = 0.0
    if config.sparse is not None:
        stride = config.sparse.kernel_stride
        compressed = channels * item_bytes * (1 / stride + 1 / (4 * stride))
    wide = max(item_bytes, 4)
    state = config.num_attention_heads * config.head_dim**2 * wide
    # Storage grows by an eighth beyond need, and the states of a chunk exist before and after it.
    storage = len(config.sparse_layers) * 1.125
    keeps_packed = config.quantization is not None and not unpack
    # Gate, up and their product, or all that a mixer projects; the residual stream before and after it.
    hidden = config.hidden_size
    widest = (max(config.intermediate_size * 3, hidden * 6) + 2 * hidden) * item_bytes + 2 * hidden * wide
    unpacking = min(_DEQUANTIZE_BYTES, config.intermediate_size * hidden * item_bytes) if keeps_packed else 0
    has_host_table = is_lean and not config.tie_word_embeddings
    return Footprint(
        weight_bytes=weight_bytes(config, item_bytes, unpacked=unpack)
        - (table_bytes(config, item_bytes, unpacked=unpack) if has_host_table else 0),
        token_bytes=storage * (2 * channels * item_bytes + compressed),
        session_bytes=2 * len(config.lightning_layers) * state,
        workspace_bytes=_lean_workspace(config, item_bytes, chunk_tokens, keeps_packed, is_narrow)
        if is_lean
        else unpacking + min(chunk_tokens, SLICE_TOKENS) * widest + (256 << 20),
        compressed_token_bytes=storage * compressed,
        # Of every layer K and V on their way to the host, and of one what was read so far.
        streaming_bytes=chunk_tokens
        * (
            len(config.sparse_layers) * 2 * channels * item_bytes
            + (0 if is_lean else config.hidden_size * max(item_bytes, 4))
        ),
        feed_channels=_LEAN_CHANNELS if is_lean else None,
        has_host_table=has_host_table,
        host_token_bytes=storage * 2 * channels * item_bytes,
    )


def _lean_workspace(
    config: ModelConfig, item_bytes: int, chunk_tokens: int, keeps_packed: bool, is_narrow: bool
) -> int:
    """The most that a chunk's tensors take at once, in one layer of each kind or one feed-forward."""
    wide, tokens = max(item_bytes, 4), chunk_tokens
    inner = config.num_attention_heads * max(config.head_dim, config.sparse_head_dim) * item_bytes
    hidden, middle = config.hidden_size * item_bytes, config.intermediate_size * item_bytes
    # q, k, v and gate, and what is read.
    lightning = 5 * inner * tokens
    # q, gate, k and v and what was chosen; then the scores of some queries, or what was read, once more in `wide`.
    picks = 0 if config.sparse is None else config.num_key_value_heads * config.sparse.selected_blocks
    scores = config.num_key_value_heads * TILE_SCORES * wide
    read = tokens * (inner * (wide + item_bytes) // item_bytes + picks * _UNITED_BYTES)
    sparse = tokens * (2 * inner + 4 * picks) + max(scores + tokens * 4 * picks, read)
    # Gate and up of some channels and their product of all; then that, and the result with a part of it.
    feed = tokens * (middle + max(2 * _LEAN_CHANNELS * item_bytes, hidden + hidden // _LEAN_PARTS))
    unpacked = config.hidden_size * max(inner, middle // _LEAN_PARTS) if keeps_packed else 0
    if is_narrow:
        # The result, and of some tokens all of gate and up and their product's codes; codes of a whole matrix.
        feed = tokens * hidden + min(tokens, NARROW_SLICE_TOKENS) * (2 * middle + middle // item_bytes)
        unpacked += config.hidden_size * config.intermediate_size
    # Besides them the residual stream and its norm.
    always = tokens * (config.hidden_size * wide + hidden)
    spare = _NARROW_SPARE_BYTES if is_narrow else _LEAN_SPARE_BYTES
    return always + max(lightning, sparse, feed) + unpacked + spare


def check_kv(kv: str) -> None:
    """Raises InvalidRequest unless `kv` is one of KV_KINDS."""
    if kv not in KV_KINDS:
        raise InvalidRequest(f"kv is {kv!r}; known are {', '.join(KV_KINDS)}")


def with_kv(config: ModelConfig, sizes: Footprint, kv: str) -> Footprint:
    """`sizes` where host memory keeps K/V as `kv`, of KV_KINDS, says."""
    return sizes if kv == "full" else replace(sizes, host_token_bytes=1.125 * host_token_bytes(config, 0, kv))


def host_token_bytes(config: ModelConfig, item_bytes: int, kv: str) -> float:
    """K and V of one token in host memory, in all layers."""
    plain = config.num_key_value_heads * config.sparse_head_dim * item_bytes
    return len(config.sparse_layers) * 2.0 * (plain if kv == "full" else _code_bytes(config))


@dataclass(frozen=True)
class Tiers:
    """How device memory for K/V is shared out where all of it is in host memory.

    Attributes:
        slots: blocks of one kv head that each layer has on the device.
        staged_pages: blocks of all kv heads that each of the two buffers holds.
        strip_pages: those that are on the device at once in 8 bits; 0 where host memory has none.
    """

    slots: int
    staged_pages: int
    strip_pages: int = 0


def tiers(config: ModelConfig, item_bytes: int, kv_budget: int, kv: str = "full") -> Tiers:
    """Shares out `kv_budget` bytes, of K/V that host memory has as `kv` says.

    Raises:
        InvalidRequest: the model has no sparse attention: every token reads everything, so all K/V must be there.
        DoesNotFit: the budget has no room for what one step reads.
    """
    heads, layers = config.num_key_value_heads, len(config.sparse_layers)
    least = least_tiers(config)
    if least is None:
        raise InvalidRequest("kv_budget is for models with sparse attention; this one reads all K/V for every token")
    slot_bytes, slots, staged = _slot_bytes(config, item_bytes), least.slots, least.staged_pages
    needed = least_kv_bytes(config, item_bytes, kv)
    if kv_budget < needed:
        raise DoesNotFit(
            f"kv_budget is {kv_budget:,} bytes, and one step of this model reads {needed:,}; give it at least that",
            needed_bytes=needed,
            available_bytes=kv_budget,
        )
    beyond = max(0, kv_budget - 2 * _AMPLE_STAGED_BYTES - _AMPLE_SLOTS_BYTES)
    wished = min(kv_budget, 3 * _AMPLE_STAGED_BYTES) + beyond
    staged = max(staged, min(_MOST_STAGED_BYTES, wished // _STAGED_SHARE) // (heads * slot_bytes))
    strips = 0 if kv == "full" else min(staged, _STRIP_PAGES)
    left = kv_budget - strips * _strip_bytes(config)
    most_staged = (left - layers * slots * slot_bytes) // (2 * heads * slot_bytes)
    staged = max(least.staged_pages, min(staged, most_staged))
    strips = min(strips, staged)
    left = kv_budget - strips * _strip_bytes(config)
    return Tiers((left - 2 * staged * heads * slot_bytes) // (layers * slot_bytes), staged, strips)


def least_tiers(config: ModelConfig) -> Tiers | None:
    """What one step needs; None for a model whose every token reads all K/V."""
    sparse, heads = config.sparse, config.num_key_value_heads
    if sparse is None or not config.sparse_layers:
        return None
    # A dense step reads everything, a sparse one what it selects, and an append what windows reach back to.
    dense_blocks = -(-sparse.dense_len // sparse.block_size)
    reach = -(-8 * sparse.kernel_stride // sparse.block_size) + 1
    return Tiers(heads * max(sparse.selected_blocks, dense_blocks, reach), dense_blocks + 1)


def least_kv_bytes(config: ModelConfig, item_bytes: int, kv: str = "full") -> int:
    """Bytes of `least_tiers`, and of codes on their way; 0 where there are none."""
    least = least_tiers(config)
    if least is None:
        return 0
    buffers = 2 * least.staged_pages * config.num_key_value_heads
    strips = 0 if kv == "full" else min(least.staged_pages, _STRIP_PAGES)
    plain = (len(config.sparse_layers) * least.slots + buffers) * _slot_bytes(config, item_bytes)
    return plain + strips * _strip_bytes(config)


def _slot_bytes(config: ModelConfig, item_bytes: int) -> int:
    return 2 * config.block_size * config.sparse_head_dim * item_bytes


def _strip_bytes(config: ModelConfig) -> int:
    """Of a block of all kv heads in 8 bits."""
    return 2 * config.block_size * _code_bytes(config)


def _code_bytes(config: ModelConfig) -> int:
    """Of a token's keys or values in 8 bits: a byte for each number, and two for the largest of each head."""
    return config.num_key_value_heads * (config.sparse_head_dim + 2)


def kv_budget(
    config: ModelConfig, sizes: Footprint, available_bytes: int, tokens: int = LONG_CONTEXT_TOKENS
) -> int | None:
    """What is left for K/V on a card beside weights and a long context.

    Args:
        config: the model.
        sizes: what it takes.
        available_bytes: for weights and caches.
        tokens: of the context.

    Returns:
        for `tiers`; None where all K/V of such a context fits, or the model reads all of it for every token.
    """
    if config.sparse is None or sizes.total_bytes(tokens) <= available_bytes:
        return None
    fixed = sizes.weight_bytes + sizes.session_bytes + sizes.workspace_bytes + sizes.streaming_bytes
    return max(0, available_bytes - fixed - sizes.compressed_bytes(tokens))


def capped(
    config: ModelConfig,
    item_bytes: int,
    available_bytes: int,
    tokens: int = LONG_CONTEXT_TOKENS,
    *,
    is_narrow: bool = False,
) -> tuple[int, Footprint]:
    """Tokens per prefill chunk, and what the model takes then, on a card with so much for weights and caches.

    Where K/V of a long context fits beside them, all is as without a cap. Else the model is lean, and a chunk has fewer
    tokens where more would leave K/V hardly any room.
    """
    chunk = _GPU_CHUNK_TOKENS
    sizes = footprint(config, item_bytes, chunk)
    if kv_budget(config, sizes, available_bytes, tokens) is None:
        return chunk, sizes
    while True:
        sizes = footprint(config, item_bytes, chunk, is_lean=True, is_narrow=is_narrow)
        budget = kv_budget(config, sizes, available_bytes, tokens)
        if budget is None or budget >= _AMPLE_KV_BYTES or chunk <= _LEAST_GPU_CHUNK_TOKENS:
            return chunk, sizes
        chunk //= 2


def default_chunk(config: ModelConfig, *, on_gpu: bool) -> int:
    """Tokens per prefill chunk where a call names none."""
    if on_gpu:
        return _GPU_CHUNK_TOKENS
    fewest, most = _CPU_CHUNK_TOKENS
    return max(fewest, min(most, int(_CPU_FLOP_PER_SECOND / (2 * parameter_count(config)))))


def choose_packing(
    config: ModelConfig, item_bytes: int, chunk_tokens: int, available_bytes: int, *, on_gpu: bool
) -> tuple[Footprint, bool]:
    """What the model takes, and whether its packed weights are unpacked when they are read.

    Both ways compute the same. A product with one token takes a CPU 6 to 10 times as long from int4 and 2 to 4 times
    from int8 as from plain numbers; a whole decode step of a small model 3.5 and 2 times.
    """
    if config.quantization is not None and not on_gpu:
        unpacked = footprint(config, item_bytes, chunk_tokens, unpack=True)
        if unpacked.total_bytes(0) <= available_bytes:
            return unpacked, True
    return footprint(config, item_bytes, chunk_tokens), False


def usable_bytes(free_bytes: int) -> int:
    """What weights and caches may take of the memory that is free; a twentieth is left to everything else."""
    return int(free_bytes * 0.95)


def usable_gpu_bytes(card_bytes: int) -> int:
    """What weights and caches may take of a card, or of a cap on one, that nothing else uses."""
    return usable_bytes(max(0, card_bytes - _CUDA_CONTEXT_BYTES))


@dataclass(frozen=True)
class Choice:
    """A model with its numbers in one format, and the longest session it then has.

    Attributes:
        config: with the packing of this choice.
        sizes: what it takes.
        unpacks: packed weights are turned into plain ones when they are read.
        longest_tokens: by memory and by the trained length of RoPE attention; 0 where not even the weights fit.
        kv_device_bytes: where K and V are in main memory, the least that the device needs for them; None where they
            are on the device.
    """

    config: ModelConfig
    sizes: Footprint
    unpacks: bool
    longest_tokens: int
    kv_device_bytes: int | None = None

    def device_bytes(self, tokens: int) -> int:
        """Bytes on the device of the weights and a session of so many tokens."""
        if self.kv_device_bytes is None:
            return self.sizes.total_bytes(tokens)
        sizes = self.sizes
        fixed = sizes.weight_bytes + sizes.session_bytes + sizes.workspace_bytes + sizes.streaming_bytes
        return fixed + self.kv_device_bytes + sizes.compressed_bytes(tokens)

    def host_bytes(self, tokens: int) -> int:
        """Bytes of K and V in main memory, where they are there."""
        return 0 if self.kv_device_bytes is None else int(self.sizes.host_token_bytes * tokens)


def choose(config: ModelConfig, item_bytes: int, available_bytes: int, *, on_gpu: bool) -> Choice:
    """How `load` would take `config` into `available_bytes`."""
    chunk = default_chunk(config, on_gpu=on_gpu)
    sizes, unpacks = choose_packing(config, item_bytes, chunk, available_bytes, on_gpu=on_gpu)
    longest = sizes.longest_context(available_bytes - sizes.weight_bytes)
    trained = config.rope_positions
    return Choice(config, sizes, unpacks, longest if trained is None else min(longest, trained))


def choose_tiered(
    config: ModelConfig,
    item_bytes: int,
    available_bytes: int,
    host_bytes: int,
    kv: str = "full",
    *,
    is_narrow: bool = False,
) -> Choice | None:
    """How `load` would take `config` under a cap with K and V in main memory, of which `host_bytes` are free.

    None where that is not to be had.
    """
    least = least_kv_bytes(config, item_bytes, kv)
    if not least:
        return None
    _, sizes = capped(config, item_bytes, available_bytes, is_narrow=is_narrow)
    sizes = with_kv(config, sizes, kv)
    choice = Choice(config, sizes, False, 0, least)
    left = available_bytes - choice.device_bytes(0)
    if left <= 0:
        return None
    longest = int(min(left / sizes.compressed_token_bytes, host_bytes / sizes.host_token_bytes))
    trained = config.rope_positions
    return replace(choice, longest_tokens=longest if trained is None else min(longest, trained))


def packed(config: ModelConfig, name: Literal["int4", "int8"]) -> ModelConfig | None:
    """`config` as `quantize` packs it; None where it does not: it is packed already, or no folder of safetensors."""
    if config.quantization is not None or config.model_type != "minicpm_sala":
        return None
    columns = config.matrix_columns
    return replace(config, quantization=recipe(name, columns, best_group_size(columns.values()), zero_point=False))


def mildest_packing(
    config: ModelConfig, item_bytes: int, chunk_tokens: int, available_bytes: int
) -> Literal["int8", "int4"] | None:
    """How the weights would have to be packed for an empty session to fit; None where nothing helps."""
    packings: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")
    for name in packings:
        smaller = packed(config, name)
        if smaller is not None and footprint(smaller, item_bytes, chunk_tokens).total_bytes(0) <= available_bytes:
            return name
    return None
