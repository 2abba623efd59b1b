"""The network as it is trained: vendor's parameter names, dense or block-sparse attention over whole sequences.

Knows no cache and no decoding (that is the runtime's); the two agree to rounding, which a test holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salalocal.training import compressed, layers
from salalocal.training.geometry import Geometry
from salalocal.training.library import Asked, Library, replace_asked

AttentionMode = Literal["dense", "sparse"]
SparseMethod = Literal["flex", "mask"]
LIGHTNING_CHUNK = 64


@dataclass(frozen=True)
class Execution:
    """How the network is run: activation dtype, compiled pieces, and how block-sparse attention is computed.

    "flex" is one fused kernel (CUDA, compiled), "mask" plain PyTorch with a mask of queries x keys.
    """

    dtype: torch.dtype = torch.float32
    compile: bool = False
    sparse_method: SparseMethod = "mask"
    window: int = 512
    picks: int = 16


@dataclass(frozen=True)
class Supervision:
    """What the loss on compressed keys needs; see `compressed.compressed_loss`."""

    queries: Tensor
    sources: Tensor
    document_end: Tensor
    log_dilution: Tensor
    crowd: Tensor
    """[B, T] fp32: what is added to the attention logits of a key when a token after the documents attends to it:
    log of how many tokens of its kind it stands for."""
    asked: Asked | None = None
    """The tokens that read the network's libraries, where it has them."""


class Weight(nn.Module):
    """A bare parameter called `weight`, so that state_dict keys are the vendor's."""

    def __init__(self, *shape: int, std: float | None, generator: torch.Generator) -> None:
        super().__init__()
        value = torch.ones(*shape) if std is None else torch.randn(*shape, generator=generator) * std
        self.weight = nn.Parameter(value)


class Layer(nn.Module):
    """The parameters of one layer."""

    def __init__(self, geometry: Geometry, is_sparse: bool, generator: torch.Generator) -> None:
        super().__init__()
        g, hidden = geometry, geometry.hidden_size
        wide = g.num_attention_heads * (g.sparse_head_dim if is_sparse else g.head_dim)
        narrow = g.num_key_value_heads * g.sparse_head_dim if is_sparse else wide
        inward, outward = 0.5 * hidden**-0.5, 0.02 * g.num_hidden_layers**-0.5

        def weight(rows: int, columns: int, std: float) -> Weight:
            return Weight(rows, columns, std=std, generator=generator)

        mixer: dict[str, Weight] = {
            "q_proj": weight(wide, hidden, inward),
            "k_proj": weight(narrow, hidden, inward),
            "v_proj": weight(narrow, hidden, inward),
            "o_gate" if is_sparse else "z_proj": weight(wide, hidden, inward),
            "o_proj": weight(hidden, wide, outward),
        }
        if not is_sparse:
            for name, size in (("q_norm", g.head_dim), ("k_norm", g.head_dim), ("o_norm", wide)):
                mixer[name] = Weight(size, std=None, generator=generator)
        self.self_attn = nn.ModuleDict(mixer)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": weight(g.intermediate_size, hidden, inward),
                "up_proj": weight(g.intermediate_size, hidden, inward),
                "down_proj": weight(hidden, g.intermediate_size, outward),
            }
        )
        self.input_layernorm = Weight(hidden, std=None, generator=generator)
        self.post_attention_layernorm = Weight(hidden, std=None, generator=generator)


class Body(nn.Module):
    """Everything but a head of its own."""

    def __init__(self, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        g = geometry
        self.embed_tokens = Weight(g.vocab_size, g.hidden_size, std=0.02, generator=generator)
        self.layers = nn.ModuleList(Layer(g, n in g.sparse_layers, generator) for n in range(g.num_hidden_layers))
        self.norm = Weight(g.hidden_size, std=None, generator=generator)


class Network(nn.Module):
    """A MiniCPM-SALA network for training. `state_dict()` has the vendor's tensor names."""

    def __init__(self, geometry: Geometry, execution: Execution, seed: int = 0) -> None:
        super().__init__()
        self.geometry = geometry
        self.execution = execution
        generator = torch.Generator().manual_seed(seed)
        self.model = Body(geometry, generator)
        if not geometry.tie_word_embeddings:
            self.lm_head = Weight(geometry.vocab_size, geometry.hidden_size, std=0.02, generator=generator)
        self.register_buffer("slopes", torch.tensor(geometry.decay_slopes), persistent=False)
        self._pieces = {name: self._compiled(getattr(layers, name)) for name in _PIECES}
        # Two pieces, so that the pooled scores exist in memory before every pair of them is compared.
        self._pooled_scores = self._compiled(compressed.pooled_scores)
        self._picked_blocks = self._compiled(compressed.picked_blocks)
        self._compressed_loss = self._compiled(compressed.compressed_loss)
        self._flex = _flex_kernel(execution.compile) if execution.sparse_method == "flex" else None
        self._libraries: dict[int, Library] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return _tensor(self.model.norm).device

    def open_libraries(self, blocks: int, picks: int) -> None:
        """From now on, every supervised sparse layer keeps so many blocks of earlier batches for questions to read."""
        g, run = self.geometry, self.execution
        self._libraries = {
            layer: Library(blocks, picks, g.num_key_value_heads, g.sparse_head_dim, run.dtype, self.device)
            for layer in g.sparse_layers[1:]
        }

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False) if self.execution.compile else function
        return compiled

    def forward(
        self, token_ids: Tensor, targets: Tensor, mode: AttentionMode, supervision: Supervision | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cross-entropy [B, T] and hits [B, T] of `targets` [B, T]; compressed-key loss and share found, means over
        the supervised layers (all sparse layers but the first; zeros without supervision).

        T is a multiple of 64 for supervision and sparse mode.
        """
        x, losses, shares = self._body(token_ids, mode, supervision)
        head = self.model.embed_tokens if self.geometry.tie_word_embeddings else self.lm_head
        entropy, hits = self._pieces["head_loss"](
            x,
            _tensor(self.model.norm),
            _tensor(head),
            targets.reshape(-1),
            self.geometry.rms_norm_eps,
            self.geometry.logits_divisor,
        )
        zero = torch.zeros((), device=x.device)
        return (
            entropy.view_as(targets),
            hits.view_as(targets),
            sum(losses, zero) / max(1, len(losses)),
            sum(shares, zero) / max(1, len(shares)),
        )

    def logits(self, token_ids: Tensor, mode: AttentionMode = "dense") -> Tensor:
        """Logits [B, T, vocab] fp32."""
        x, _, _ = self._body(token_ids, mode, None)
        head = self.model.embed_tokens if self.geometry.tie_word_embeddings else self.lm_head
        normed = layers.rms_norm(x, _tensor(self.model.norm), self.geometry.rms_norm_eps)
        logits = (normed / self.geometry.logits_divisor) @ _tensor(head).to(x.dtype).t()
        return logits.float().view(*token_ids.shape, -1)

    def _body(
        self, token_ids: Tensor, mode: AttentionMode, supervision: Supervision | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        g = self.geometry
        batch, tokens = token_ids.shape
        embedding = _tensor(self.model.embed_tokens)
        x = F.embedding(token_ids.reshape(-1), embedding).to(self.execution.dtype) * g.scale_emb
        cos, sin = layers.rotary_tables(tokens, g.head_dim, g.rope_theta, x.device)
        tables = (cos.repeat(batch, 1), sin.repeat(batch, 1))
        losses: list[Tensor] = []
        shares: list[Tensor] = []
        for number, layer in enumerate(self.model.layers):
            assert isinstance(layer, Layer)
            if number not in g.sparse_layers:
                x = self._lightning(layer, x, batch, tables)
                continue
            x, loss, share = self._sparse(number, layer, x, batch, mode, supervision)
            if loss is not None and share is not None:
                losses.append(loss)
                shares.append(share)
        return x, losses, shares

    def _lightning(self, layer: Layer, x: Tensor, batch: int, tables: tuple[Tensor, Tensor]) -> Tensor:
        g, mixer = self.geometry, layer.self_attn
        q, k, v, gate = self._pieces["lightning_inputs"](
            x,
            _tensor(layer.input_layernorm),
            *(_tensor(mixer[name]) for name in ("q_proj", "k_proj", "v_proj", "z_proj", "q_norm", "k_norm")),
            *tables,
            g.rms_norm_eps,
        )
        shape = (batch, -1, g.num_attention_heads, g.head_dim)
        q, k, v = (_padded(a.view(shape), LIGHTNING_CHUNK) for a in (q, k, v))
        mixed = self._pieces["lightning_mix"](q, k, v, self.get_buffer("slopes"), LIGHTNING_CHUNK)
        mixed = mixed[:, : x.shape[0] // batch].reshape(x.shape[0], -1)
        result: Tensor = self._pieces["lightning_outputs"](
            x, mixed, gate, _tensor(mixer["o_norm"]), _tensor(mixer["o_proj"]), *self._feed_forward(layer)
        )
        return result

    def _sparse(
        self, number: int, layer: Layer, x: Tensor, batch: int, mode: AttentionMode, supervision: Supervision | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        g, mixer = self.geometry, layer.self_attn
        q, k, v, gate = self._pieces["sparse_inputs"](
            x,
            _tensor(layer.input_layernorm),
            *(_tensor(mixer[name]) for name in ("q_proj", "k_proj", "v_proj", "o_gate")),
            g.rms_norm_eps,
        )
        q, k, v = (
            a.reshape(batch, -1, a.shape[-1] // g.sparse_head_dim, g.sparse_head_dim).transpose(1, 2) for a in (q, k, v)
        )
        loss = share = None
        if supervision is not None and number != g.sparse_layers[0]:
            s = supervision
            loss, share = self._compressed_loss(q, k, s.queries, s.sources, s.document_end, s.log_dilution)
        mixed = self._dense_attention(q, k, v, supervision) if mode == "dense" else self._block_attention(q, k, v)
        library = self._libraries.get(number)
        if library is not None and supervision is not None and supervision.asked is not None:
            mixed = replace_asked(mixed, library.attend(q, k, v, supervision.asked), supervision.asked)
            library.add(k.detach(), v.detach(), supervision.document_end)
        x = self._pieces["sparse_outputs"](
            x, mixed.transpose(1, 2).reshape(x.shape[0], -1), gate, _tensor(mixer["o_proj"]), *self._feed_forward(layer)
        )
        return x, loss, share

    def _feed_forward(self, layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor, float, float]:
        return (
            _tensor(layer.post_attention_layernorm),
            *(_tensor(layer.mlp[name]) for name in ("gate_proj", "up_proj", "down_proj")),
            self.geometry.rms_norm_eps,
            self.geometry.residual_scale,
        )  # type: ignore[return-value]

    def _dense_attention(self, q: Tensor, k: Tensor, v: Tensor, supervision: Supervision | None = None) -> Tensor:
        group, dim = q.shape[1] // k.shape[1], q.shape[-1]
        if supervision is not None:
            q, k, v = self._pieces["crowded"](q, k, v, supervision.crowd, supervision.document_end)
        k, v = (a.repeat_interleave(group, 1) for a in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=dim**-0.5)[..., :dim]

    def _block_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        run = self.execution
        with torch.no_grad():
            # One sequence at a time: the scores of a whole batch would be gigabytes.
            maps = [
                self._picked_blocks(self._pooled_scores(q[i : i + 1], k[i : i + 1]), run.window, run.picks)
                for i in range(q.shape[0])
            ]
            chosen = torch.cat(maps)
        if self._flex is not None:
            return self._flex(q, k, v, chosen)
        group, tokens = q.shape[1] // k.shape[1], q.shape[2]
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
        mask = chosen.repeat_interleave(compressed.BLOCK, -1).repeat_interleave(group, 1) & causal
        k, v = (a.repeat_interleave(group, 1) for a in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


_PIECES = (
    "lightning_inputs",
    "lightning_mix",
    "lightning_outputs",
    "sparse_inputs",
    "sparse_outputs",
    "head_loss",
    "crowded",
)


def _tensor(module: Any) -> Tensor:
    """The parameter of a `Weight`; nn.Module's attributes are untyped."""
    weight: Tensor = module.weight
    return weight


def _padded(x: Tensor, multiple: int) -> Tensor:
    """x [B, T, ...] with zeros behind, so that T is a multiple."""
    missing = -x.shape[1] % multiple
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x


def _flex_kernel(compiled: bool) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Attention under a block map by torch's FlexAttention."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    kernel = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    tile = 128
    orders: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor) -> Tensor:
        tokens, group = q.shape[2], q.shape[1] // k.shape[1]
        if tokens not in orders:
            count = tokens // tile
            number = torch.arange(1, count + 1, dtype=torch.int32, device=q.device)[None, None]
            index = torch.arange(count, dtype=torch.int32, device=q.device)[None, None, None]
            orders[tokens] = (number, index.expand(1, 1, count, count).contiguous())

        def reads(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return chosen[b, h // group, query, key // compressed.BLOCK] & (key <= query)

        mask = BlockMask.from_kv_blocks(*orders[tokens], BLOCK_SIZE=tile, mask_mod=reads)
        result: Tensor = kernel(q, k, v, block_mask=mask, enable_gqa=True)
        return result

    return attend
