"""How many bytes a model and a context take, before anything is allocated. Knows no torch, no files, no time."""

from __future__ import annotations

from dataclasses import dataclass

from salalocal.config import ModelConfig
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
# What small tensors, products' own workspaces (cuBLAS takes 32 MiB on an H100) and gaps between tensors take in a lean
# workspace. With less the allocator gives back and asks anew, which took seconds of every ten.
_LEAN_SPARE_BYTES = 192 << 20
# In 8 bits tensors of three sizes take turns: with 128 MiB of it a text of two million tokens ran out of memory.
_NARROW_SPARE_BYTES = 256 << 20
# What CUDA itself takes on a card before the first tensor.
_CUDA_CONTEXT_BYTES = 1 << 29
_GPU_CHUNK_TOKENS = 8192
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

    @property
    def tiered_bytes(self) -> int:
        """Of a session whose K/V is in host memory: all that the device holds but K/V and compressed keys."""
        return self.weight_bytes + self.session_bytes + self.workspace_bytes + self.streaming_bytes

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
        # Of two layers K and V on their way to the host, and of one what was read so far.
        streaming_bytes=chunk_tokens
        * (2 * 2 * channels * item_bytes + (0 if is_lean else config.hidden_size * max(item_bytes, 4))),
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


def default_chunk(config: ModelConfig, *, on_gpu: bool) -> int:
    """Tokens per prefill chunk where a call names none."""
    if on_gpu:
        return _GPU_CHUNK_TOKENS
    fewest, most = _CPU_CHUNK_TOKENS
    return max(fewest, min(most, int(_CPU_FLOP_PER_SECOND / (2 * parameter_count(config)))))


def usable_bytes(free_bytes: int) -> int:
    """What weights and caches may take of the memory that is free; a twentieth is left to everything else."""
    return int(free_bytes * 0.95)


def usable_gpu_bytes(card_bytes: int) -> int:
    """What weights and caches may take of a card, or of a cap on one, that nothing else uses."""
    return usable_bytes(max(0, card_bytes - _CUDA_CONTEXT_BYTES))
