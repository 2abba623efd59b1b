"""What a decode step consists of: its parts as calls that can be timed one by one. Knows no clock.

A part runs what the step runs of its kind, in all layers, over the same weights and the same memory; only its input is
made up, and is the same in every layer. Parts leave K/V of one token behind that mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from salalocal.cache.session_cache import SessionCache
from salalocal.engine.decode_graph import room_for
from salalocal.engine.sampling import Choice
from salalocal.model.lightning_layer import LightningLayer
from salalocal.model.network import Network
from salalocal.model.span import Span
from salalocal.model.sparse_layer import SparseLayer
from salalocal_kernels import add_rms_norm

WHOLE = "step"
_GREEDY = Choice(0.0, 0, 1.0, 0.0)


def step_parts(network: Network, cache: SessionCache) -> dict[str, Callable[[], object]]:
    """The whole step under the name WHOLE, then its parts in the order in which they come.

    Args:
        network: the model.
        cache: of a length from which attention is sparse; its states and length stay.
    """
    config, length = network.config, cache.length
    capacity = room_for(length + 1)[1]
    cache.prepare_step(capacity, length + 1)
    new_states = tuple(torch.empty_like(state) for state in cache.states)
    storage = cache.step_storage(capacity, tuple(cache.states), new_states)
    storage.page_table[: len(cache.page_table)].copy_(cache.page_table)
    token, count = torch.zeros(2, 1, dtype=torch.int64, device=network.device)
    position = torch.full((1,), length, device=network.device)
    memory = storage.at(position, position + 1)
    span = Span.of(config, position, 1, True, False, network.dtype, network.device, memory.length)
    x = torch.ones(1, config.hidden_size, dtype=torch.promote_types(network.dtype, torch.float32), device=token.device)
    y = torch.randn(1, config.hidden_size, device=token.device).to(network.dtype)
    logits = torch.randn(config.vocab_size, device=token.device)
    mixers = [layer.mixer for layer in network.layers]
    sparse = [mixer for mixer in mixers if isinstance(mixer, SparseLayer)]
    lightning = [mixer for mixer in mixers if isinstance(mixer, LightningLayer)]

    def whole() -> Tensor:
        return _GREEDY(network.step(token, memory, True, None), token, count)

    def position_and_angles() -> object:
        return Span.of(config, position, 1, True, False, network.dtype, network.device, memory.length)

    def sparse_mixers() -> None:
        for index, mixer in enumerate(sparse):
            mixer(y, memory.attention(index), span)

    def lightning_mixers() -> None:
        for state, into, mixer in zip(memory.states, memory.new_states, lightning, strict=True):
            mixer(y, state, span, into)

    def feed_forwards() -> None:
        for layer in network.layers:
            layer.feed_forward(y)

    def norms() -> None:
        for layer in network.layers:
            for weight in (layer.input_norm, layer.post_norm):
                add_rms_norm(x, y, config.residual_scale, weight, config.rms_norm_eps)

    return {
        WHOLE: whole,
        "position and angles": position_and_angles,
        "embedding row": lambda: network.embedding.embed(token, config.scale_emb),
        f"{len(sparse)} sparse mixers": sparse_mixers,
        f"{len(lightning)} lightning mixers": lightning_mixers,
        f"{len(network.layers)} feed-forwards": feed_forwards,
        f"{2 * len(network.layers)} additions and norms": norms,
        "head": lambda: network.logits(y),
        "choice": lambda: _GREEDY(logits, token, count),
    }
