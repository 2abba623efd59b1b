"""Everything one session remembers: K/V pages, compressed keys, linear states. Knows no weights and no tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.cache.attention_cache import AttentionCache, ResidentAttention, recent_blocks
from salalocal.cache.compressed_keys import CompressedKeys, fine_and_coarse
from salalocal.cache.kv_store import KVCache, KVStore
from salalocal.cache.step_memory import LayerStorage, StepStorage
from salalocal.cache.tiered_attention import TieredAttention
from salalocal.cache.tiered_cache import TieredCache
from salalocal.cache.tiered_store import TieredStore, Traffic
from salalocal.config import ModelConfig


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What the linear layers know after `position` tokens, and the logits there.

    Attributes:
        position: tokens read.
        states: one [H, Dk, Dv] float32 tensor per lightning layer; never written to.
        logits: [vocab] float32 of the last position; None at position 0.
    """

    position: int
    states: tuple[Tensor, ...]
    logits: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        return sum(state.nbytes for state in self.states) + (0 if self.logits is None else self.logits.nbytes)


class SessionCache:
    """All layers' memory of one session, and its length in tokens.

    Args:
        kv: K/V of all attention layers.
        compressed: compressed keys per attention layer.
        states: [H, Dk, Dv] per lightning layer, at least float32.
        length: tokens read.
    """

    def __init__(
        self,
        kv: KVCache | TieredCache,
        compressed: list[tuple[CompressedKeys, CompressedKeys] | None],
        states: list[Tensor],
        length: int,
    ) -> None:
        self._kv = kv
        self._compressed = compressed
        self.states = states
        self.length = length
        # Counts what a step that was begun ahead of its token does not outlive.
        self.moves = 0

    @staticmethod
    def empty(
        config: ModelConfig, dtype: torch.dtype, device: torch.device, tiers: TieredStore | None = None
    ) -> SessionCache:
        """A memory of nothing, for K and V in `dtype` on `device`, or in host memory where `tiers` keep them."""
        kv_heads, dim, layers = config.num_key_value_heads, config.sparse_head_dim, len(config.sparse_layers)
        kv = TieredCache(tiers) if tiers else KVCache(KVStore(layers, kv_heads, dim, config.block_size, dtype, device))
        sparse = config.sparse
        compressed = [fine_and_coarse(sparse, kv_heads, dim, dtype, device) if sparse else None for _ in range(layers)]
        wide = torch.promote_types(dtype, torch.float32)
        shape = (config.num_attention_heads, config.head_dim, config.head_dim)
        states = [torch.zeros(shape, dtype=wide, device=device) for _ in config.lightning_layers]
        return SessionCache(kv, compressed, states, 0)

    def attention(self, index: int) -> AttentionCache:
        """The memory of attention layer number `index` (counted among attention layers)."""
        kv, compressed = self._kv, self._compressed[index]
        if isinstance(kv, TieredCache):
            return TieredAttention(index, kv, compressed)
        return ResidentAttention(index, kv, compressed)

    def reserve(self, tokens: int) -> None:
        """Takes the storage of `tokens` more at once: copying it whenever it grows takes time, and room for two."""
        self._kv.reserve(self.length, self.length + tokens)
        for levels in self._compressed:
            for level in levels or ():
                count = level.count(self.length + tokens)
                if count > level.count(self.length):
                    level.room(count)

    def extend(self, tokens: int) -> None:
        """Makes room for `tokens` more; `length` moves only with `commit`, and without it nothing has changed."""
        # Even a chunk that dies has written keys of its own over those of the step.
        self.moves += 1
        self._kv.extend(self.length, self.length + tokens)

    def make_room(self, length: int) -> None:
        """Room for K/V and compressed keys of `length` tokens in a memory of nothing, for `tokens` to give views of."""
        assert not self.length
        self._kv.make_room(length)
        for levels in self._compressed:
            for level in levels or ():
                level.room(level.count(length))

    def tokens(self, start: int, stop: int) -> dict[str, Tensor]:
        """K/V of tokens [start, stop) by layer, and the compressed keys that these tokens complete, to be saved.

        Args:
            start: at the beginning of a block.
            stop: at most the length, or the room made.

        Returns:
            [Hkv, 2, T, D] and [Hkv, n, D], last two dimensions in a row; views where pages lie in a row. Where they are
            read into they are views, or have to be given to `keep_tokens`.
        """
        found: dict[str, Tensor] = {}
        for index, levels in enumerate(self._compressed):
            found[f"kv.{index}"] = self._kv.span(index, start, stop)
            for name, level in zip(("fine", "coarse"), levels or (), strict=False):
                found[f"{name}.{index}"] = level.upto(stop)[:, level.count(start) :]
        return found

    @property
    def gives_views(self) -> bool:
        """Whether what is written to `tokens` of a memory of nothing is there at once."""
        return not isinstance(self._kv, TieredCache)

    def keep_tokens(self, start: int, tokens: Mapping[str, Tensor]) -> None:
        """Stores what was read into what `tokens` gave for the tokens from `start` on."""
        if isinstance(self._kv, TieredCache):
            for index in range(len(self._compressed)):
                self._kv.keep_span(index, start, tokens[f"kv.{index}"])

    @property
    def traffic(self) -> Traffic | None:
        """Blocks that steps of any session of the engine asked for; None where all K/V is on the device."""
        return self._kv.store.traffic if isinstance(self._kv, TieredCache) else None

    @property
    def block_size(self) -> int:
        """Tokens per K/V block."""
        return self._kv.block_size

    def prepare_step(self, capacity: int, max_tokens: int) -> None:
        """Makes room for one token more, in storage that takes `capacity` tokens, or K/V of `max_tokens`, unmoved.

        It also moves where a fork made room for itself, or shares what this session is going to write.
        """
        if not isinstance(self._kv, TieredCache):
            self._kv.reserve(self.length, max(min(capacity, max_tokens), self.length + 1))
        self._kv.extend(self.length, self.length + 1)
        for levels in self._compressed:
            for level in levels or ():
                level.room(level.count(capacity))

    def blocks_of(self, length: int) -> int:
        """Blocks that the first `length` tokens take."""
        return -(-length // self._kv.block_size)

    def storage(self) -> tuple[Tensor, ...]:
        """K/V and compressed keys of all layers; the same objects for as long as nothing has moved."""
        compressed = [level.storage for levels in self._compressed for level in levels or ()]
        return (*self._kv.storage, *compressed)

    def step_storage(self, capacity: int, states: tuple[Tensor, ...], new_states: tuple[Tensor, ...]) -> StepStorage:
        """What a step of a session of up to `capacity` tokens reads and writes, after `prepare_step`.

        Args:
            capacity: in tokens.
            states, new_states: that steps are to read and to overwrite, like those of this cache.
        """
        blocks = -(-capacity // self._kv.block_size)
        device = self._kv.page_table.device
        layers = []
        for index, levels in enumerate(self._compressed):
            keys = levels and (levels[0].upto(capacity), levels[1].upto(capacity))
            stride = levels[0].stride if levels else 0
            if isinstance(self._kv, TieredCache):
                tier = self._kv.store.layer(index)
                layers.append(LayerStorage(tier.pages, keys, stride, tier))
            else:
                layers.append(LayerStorage(self._kv.pages(index), keys, stride))
        kv_heads = layers[0].pages.shape[1] if layers else 1
        numbers = torch.arange(blocks, dtype=torch.int32, device=device)
        return StepStorage(
            page_table=torch.zeros(blocks, dtype=torch.int64, device=device),
            blocks=numbers.expand(kv_heads, blocks),
            states=states,
            new_states=new_states,
            layers=tuple(layers),
            recent=recent_blocks(self._compressed[0] if self._compressed else None, self._kv.block_size),
            slot_table=torch.zeros(kv_heads, blocks, dtype=torch.int64, device=device),
        )

    @property
    def page_table(self) -> Tensor:
        """int64 [N]: the page of each block; another object once it has changed."""
        return self._kv.page_table

    def trim(self) -> None:
        """Gives back the pages that a chunk took which was never committed."""
        self._kv.truncate(self.length)
        self.moves += 1

    def commit(self, tokens: int, states: list[Tensor]) -> None:
        """All layers have read `tokens` more: takes over their states and moves the length."""
        self.states = states
        self.length += tokens
        self.moves += 1

    def checkpoint(self, logits: Tensor | None) -> Checkpoint:
        """A copy of the linear states at the present length."""
        return Checkpoint(self.length, tuple(state.clone() for state in self.states), logits)

    def rewind(self, checkpoint: Checkpoint) -> None:
        """Back to `checkpoint`, which must have been taken from these very tokens."""
        # What may fail comes first.
        states = [state.clone() for state in checkpoint.states]
        self._kv.truncate(checkpoint.position)
        self.moves += 1
        self.states = states
        self.length = checkpoint.position

    def fork(self) -> SessionCache:
        """A second memory of the same tokens; K/V and compressed keys are copied only when written to."""
        # Pages of a chunk that failed half-way hold nothing; shared, both sessions would write to them.
        self.trim()
        compressed = [levels and (levels[0].fork(), levels[1].fork()) for levels in self._compressed]
        return SessionCache(self._kv.fork(), compressed, [state.clone() for state in self.states], self.length)

    @property
    def nbytes(self) -> int:
        """Bytes of K/V storage (shared by forks), compressed keys and states."""
        compressed = sum(level.nbytes for levels in self._compressed if levels for level in levels)
        return self._kv.nbytes + compressed + sum(state.nbytes for state in self.states)
