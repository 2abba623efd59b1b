"""The embedded model over a million tokens on an NVIDIA GPU: with K and V in host memory and a pool far too small for
them it computes what it computes with all of them on the device.

With -s it prints how far apart the two are where a history comes in pieces.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

import salalocal
from salalocal.cache.tiered_store import TieredStore
from salalocal.engine.engine import Engine
from salalocal.engine.session import Session
from salalocal.evaluate.filler import Filler
from salalocal.hub import EMBEDDED_MODEL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.timeout(300),
]

TOKENS = 1 << 20
LAST = 4096
STEPS = 24
# Four times what one step reads, for a history of 16,384 blocks.
SLOTS = 4 * 2 * 96


def words(engine: Engine) -> list[int]:
    """A million tokens of made-up prose."""

    def paragraphs() -> Iterator[list[int]]:
        filler = Filler("a million")
        while True:
            yield engine.tokenizer.encode_text(" ".join(filler.paragraph()) + "\n")

    ids: list[int] = []
    for paragraph in paragraphs():
        ids += paragraph
        if len(ids) >= TOKENS:
            return ids[:TOKENS]
    raise AssertionError


def loaded(dtype: str, staged: int | None = None) -> Engine:
    """Everything on the device, or buffers of so many pages for what is in host memory."""
    engine = salalocal.load(EMBEDDED_MODEL, device="cuda", dtype=dtype, kv_budget=None if staged is None else 256 << 20)
    if staged is not None:
        config = engine.config
        engine._tiers = TieredStore(
            len(config.sparse_layers), config.num_key_value_heads, config.sparse_head_dim, config.block_size,
            engine.dtype, engine.device, max(SLOTS, 2 * 129), staged,
        )  # fmt: skip
    return engine


def read(engine: Engine, ids: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the last tokens selected, layer by layer, and the logits of the steps behind them."""
    session: Session = engine.new_session(record_selection=True)
    session.prefill(ids[:-LAST], final_length=TOKENS)
    session.prefill(ids[-LAST:], final_length=TOKENS)
    selected = []
    for layer in engine.config.sparse_layers:
        blocks = session.selected_blocks(layer)
        assert blocks is not None
        selected.append(blocks.cpu())
    steps = [session.step(token).double().cpu() for token in ids[:STEPS]]
    return selected, steps


def shared(one: torch.Tensor, other: torch.Tensor) -> float:
    """The share of the blocks [Hkv, T, K] that both have, query by query."""
    return (one[..., :, None] == other[..., None, :]).any(-1).double().mean().item()


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return words(salalocal.load(EMBEDDED_MODEL, device="cpu"))


@pytest.fixture(scope="module")
def resident(ids: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return read(loaded("bfloat16"), ids)


def test_where_a_buffer_holds_the_history_everything_is_bit_equal(
    ids: list[int], resident: tuple[list[torch.Tensor], list[torch.Tensor]]
) -> None:
    selected, steps = read(loaded("bfloat16", staged=TOKENS // 64 + 64), ids)
    assert all(map(torch.equal, selected, resident[0]))
    assert all(map(torch.equal, steps, resident[1]))


def test_where_it_comes_in_pieces_only_sums_are_rounded_otherwise(
    ids: list[int], resident: tuple[list[torch.Tensor], list[torch.Tensor]]
) -> None:
    """No further from a float32 run than twice what the run with everything on the device is."""
    pieces = read(loaded("bfloat16", staged=2048), ids)
    exact = read(loaded("float32"), ids)
    assert torch.equal(pieces[0][0], resident[0][0]), "the first sparse layer's keys and queries are the same"
    same, usual_same = ([shared(*each) for each in zip(one[0], resident[0], strict=True)] for one in (pieces, exact))
    ours, usual, apart = (
        torch.stack([(a - b).square().mean() for a, b in zip(one[1], other[1], strict=True)]).mean().sqrt().item()
        for one, other in ((pieces, exact), (resident, exact), (pieces, resident))
    )
    scale = torch.stack(exact[1]).square().mean().sqrt().item()
    sys.stdout.write(
        f"\n{TOKENS:,} tokens, the last {LAST:,}: selected blocks in common, layer by layer, in pieces against whole "
        f"{[f'{share:.5f}' for share in same]}, bfloat16 against float32 {[f'{share:.5f}' for share in usual_same]}; "
        f"rms of logits by their rms: in pieces against whole {apart / scale:.5f}, whole against float32 "
        f"{usual / scale:.5f}, in pieces against float32 {ours / scale:.5f}\n"
    )
    assert ours <= 2 * usual
