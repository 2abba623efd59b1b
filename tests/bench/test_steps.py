"""`bench steps` on a processor, with a small model: every row, replayed selections, made-up weights and history."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from made_sizes import BLOCK, PICKS, small_config

from salalocal.bench import steps
from salalocal.bench.clock import Ceilings
from salalocal.bench.made_model import MadeSource, make_history, make_network, released_config
from salalocal.bench.replay import Replay, replaying
from salalocal.bench.step_costs import decode_bytes, narrow_flop, prefill_flop
from salalocal.bench.steps import MADE_UP, Plan, StepRow, StepTimes, time_steps
from salalocal.cli.app import app
from salalocal.engine.decode_graph import DecodeGraph
from salalocal.engine.session import Session
from salalocal.errors import InvalidRequest
from salalocal.model.network import Network
from salalocal.weights.layout import parameter_count, weight_bytes
from salalocal_kernels import watch
from salalocal_quant import Int4Weight, Int8Weight, PlanesWeight, narrow_weight

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
HISTORY, TOKENS = 270, 40
PLAN = Plan(decode_lengths=(256, 300), steps=3, chunk_tokens=TOKENS, chunk_history=HISTORY, chunks=2)


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network(small_config(), torch.float32, CPU)


def opened(network: Network, is_graphed: bool = False) -> Session:
    """A session that holds a made-up history; `is_graphed` steps as on a GPU, over memory that stays where it is."""
    cache = make_history(network.config, HISTORY, HISTORY + TOKENS + 8, torch.float32, CPU)
    session = Session(network, cache, TOKENS, HISTORY + TOKENS + 8, record_selection=True, model=MADE_UP)
    session.token_ids.extend([0] * HISTORY)
    if is_graphed:
        session._reader.decoder = DecodeGraph(network, session.max_tokens)
    return session


def test_the_released_model() -> None:
    config = released_config()
    assert (len(config.sparse_layers), len(config.lightning_layers)) == (8, 24)
    assert parameter_count(config) == 9_477_203_968
    # 4 bits and 8, and a scale of 16 bits for 128 codes.
    assert weight_bytes(config, 2) == pytest.approx(5.53e9, rel=1e-3)
    # Weights without the embedding, states there and back, 50 MB of blocks, 160 compressed numbers per token.
    expected = 5.226e9 + 0.1007e9 + 2 * 0.0252e9 + 2 * 160 * (1 << 20)
    assert decode_bytes(config, 2, 1 << 20) == pytest.approx(expected, rel=1e-3)
    # 17.75 GFLOP of products and 0.81 of attention per token, 5,120 of scores per token seen, and the states.
    expected = 8192 * (17.75e9 + 0.805e9 + 5120 * (16384 + 4096) + 0.05e9)
    assert prefill_flop(config, 16384, 8192) == pytest.approx(expected, rel=1e-3)


def test_made_weights_are_packed_and_of_the_size_of_trained_ones(network: Network) -> None:
    config = network.config
    source = MadeSource(config, CPU, seed=0)
    assert torch.equal(source.read("lm_head.qweight"), MadeSource(config, CPU, seed=0).read("lm_head.qweight"))
    kinds = {type(weight) for weight in network.matrices}
    assert kinds == {Int4Weight, Int8Weight}
    for weight in network.matrices:
        assert isinstance(weight, Int4Weight | Int8Weight)
        values = weight.unpack().data
        assert values.square().mean().sqrt() * values.shape[1] ** 0.5 == pytest.approx(1, rel=0.03)
        assert values.mean().abs() * values.shape[1] ** 0.5 < 0.1
        x = torch.randn(1, values.shape[1])
        # As they lie on a GPU, they are the same matrix.
        torch.testing.assert_close(PlanesWeight.of(weight)(x), x @ values.T, rtol=1e-4, atol=1e-4)
    assert network.nbytes == pytest.approx(weight_bytes(config, 4), rel=0.02)


def test_a_made_history_is_one_that_could_have_been_read(network: Network) -> None:
    config, heads, dim = network.config, 2, 32
    cache = make_history(config, HISTORY, HISTORY + 8, torch.float32, CPU)
    assert cache.length == HISTORY
    for index in range(2):
        layer = cache.attention(index)
        keys = layer.context(HISTORY)[:, :, 0].transpose(0, 1).reshape(heads, -1, dim)[:, :HISTORY]
        assert keys.std() == pytest.approx(1, rel=0.05)
        fine, coarse = layer.compressed_keys(HISTORY)
        torch.testing.assert_close(fine, keys.unfold(1, 8, 4).mean(-1))
        torch.testing.assert_close(coarse, keys.unfold(1, 32, 16).mean(-1))
    assert not torch.equal(*(cache.attention(index).context(HISTORY) for index in range(2)))
    assert all(state.std() == pytest.approx(1, rel=0.1) for state in cache.states)


@pytest.mark.parametrize("is_graphed", [False, True])
def test_layers_read_what_is_replayed(network: Network, is_graphed: bool) -> None:
    replay = Replay.made(network.config, HISTORY, TOKENS + 3, 0.64, CPU)
    table = replay.of(HISTORY, TOKENS + 3)
    assert table.shape == (2, TOKENS + 3, PICKS)
    session, own = (opened(model, is_graphed) for model in (replaying(network, replay), network))
    assert not torch.equal(session.prefill(range(TOKENS)), own.prefill(range(TOKENS)))
    for layer in network.config.sparse_layers:
        assert torch.equal(session.selected_blocks(layer), table[:, :TOKENS])
    for number in range(TOKENS, TOKENS + 3):
        replay.aim(session.length)
        session.step(1)
        for layer in network.config.sparse_layers:
            assert torch.equal(session.selected_blocks(layer), table[:, number, None])


@pytest.mark.parametrize("is_graphed", [False, True])
def test_own_selections_replayed_compute_the_same(is_graphed: bool) -> None:
    """One attention layer only, since all layers replay one table."""
    network = make_network(small_config("lsl"), torch.float32, CPU)
    own = opened(network, is_graphed)
    expected = [own.prefill(range(TOKENS))]
    chosen = [own.selected_blocks(1)]
    for token in range(3):
        expected.append(own.step(token))
        chosen.append(own.selected_blocks(1))
    replay = Replay(torch.cat(chosen, dim=1), HISTORY)
    session = opened(replaying(network, replay), is_graphed)
    found = [session.prefill(range(TOKENS))]
    for token in range(3):
        replay.aim(session.length)
        found.append(session.step(token))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("is_graphed", [False, True])
def test_every_row_is_timed(network: Network, monkeypatch: pytest.MonkeyPatch, is_graphed: bool) -> None:
    monkeypatch.setattr(narrow_weight, "MANY_TOKENS", TOKENS)
    make, made = steps._session, []

    def make_and_keep(*arguments: object) -> Session:
        session = make(*arguments)  # type: ignore[arg-type]
        if is_graphed:
            session._reader.decoder = DecodeGraph(session._network, session.max_tokens)
        made.append(session)
        return session

    monkeypatch.setattr(steps, "_session", make_and_keep)
    told: list[StepRow] = []
    rates = {"bf16": 1e14, "int8": 4e14}
    rows = time_steps(network, PLAN, Ceilings("a card", 1e12, 1e10, rates), told.append)
    assert rows == told
    assert [(row.step, row.history, row.tokens, row.selection, row.repeats) for row in rows] == [
        ("decode", 256, 1, "own", 3),
        ("decode", 256, 1, "replayed", 3),
        ("decode", 300, 1, "own", 3),
        ("decode", 300, 1, "replayed", 3),
        *[("prefill", HISTORY, TOKENS, "own", 2), ("prefill", HISTORY, TOKENS, "replayed", 2)] * 3,
    ]
    assert [row.products for row in rows] == ["full"] * 6 + ["int8"] * 2 + ["fp8"] * 2
    for row in rows:
        assert row.milliseconds > 0
        assert row.tokens_per_second == pytest.approx(1e3 * row.tokens / row.milliseconds)
        assert (row.device_ms is not None) == (row.step == "decode") == (row.bound == "bytes")
        assert row.parts == {}
    decode, prefill, in_int8, in_fp8 = rows[2], rows[5], rows[7], rows[9]
    assert decode.floor_ms == pytest.approx(decode_bytes(network.config, 4, 300) / 1e12 * 1e3)
    assert prefill.floor_ms == pytest.approx(prefill_flop(network.config, HISTORY, TOKENS) / 1e14 * 1e3)
    flop = prefill_flop(network.config, HISTORY, TOKENS)
    in_bits = narrow_flop(network.config, TOKENS)
    # Of four layers all products but those with q and k of the two sparse ones, 128 x 128 and 128 x 64.
    wide = 4 * 3 * 128 * 256 + 2 * 5 * 128 * 128 + 2 * (3 * 128 * 128 + 2 * 128 * 64)
    assert in_bits == 2 * TOKENS * (wide - 2 * (128 * 128 + 128 * 64))
    assert in_int8.floor_ms == pytest.approx(1e3 * (in_bits / 4e14 + (flop - in_bits) / 1e14))
    assert (in_int8.bound, in_fp8.bound, in_fp8.floor_ms) == ("int8", "fp8", None)
    assert prefill.of_ceiling == pytest.approx(prefill.floor_ms / prefill.milliseconds)
    # Every row began with its history and nothing more: whatever a row left behind was taken back.
    assert [session.max_tokens for session in made] == [256 + 8] * 2 + [300 + 8] * 2 + [HISTORY + TOKENS] * 6
    assert [session.length for session in made[-6:]] == [HISTORY] * 6


def test_the_parts_of_a_step(network: Network) -> None:
    own, replayed, *_ = time_steps(network, Plan((256,), 1, TOKENS, HISTORY, 1, with_parts=True), None, lambda _: None)
    assert list(own.parts) == list(replayed.parts)
    assert list(own.parts) == [
        "position and angles", "embedding row", "2 sparse mixers", "2 lightning mixers", "4 feed-forwards",
        "8 additions and norms", "head", "choice",
    ]  # fmt: skip
    assert all(milliseconds > 0 for milliseconds in own.parts.values())
    assert own.floor_ms is own.of_ceiling is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_every_row_is_timed_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the released sizes are, in a second: packed in planes, recorded, every op by its kernel."""
    monkeypatch.setattr(narrow_weight, "MANY_TOKENS", TOKENS)
    made = make_network(small_config(), torch.bfloat16, torch.device("cuda"))
    with watch() as served:
        rows = time_steps(made, replace(PLAN, with_parts=True), None, lambda _: None)
    assert served.fallbacks == {}
    assert [(row.step, row.selection) for row in rows] == [
        *[("decode", "own"), ("decode", "replayed")] * 2,
        *[("prefill", "own"), ("prefill", "replayed")] * len({row.products for row in rows}),
    ]
    for row in rows[:4]:
        assert row.device_ms is not None
        # The next step is under way while the host reads a token, so a step may seem shorter than it is by itself.
        assert 0 < row.device_ms < 2 * row.milliseconds
        assert len(row.parts) == 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    result = CliRunner().invoke(app, ["bench", "steps"])
    assert isinstance(result.exception, InvalidRequest)
    assert "NVIDIA GPU" in str(result.exception)


def test_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        StepRow("decode", 1 << 20, 1, "replayed", 2.5, 100, 2.25, 2.0, "bytes", {"head": 0.125}),
        StepRow("prefill", 16384, 8192, "own", 400.0, 5, None, 200.0, "bf16"),
        StepRow("prefill", 16384, 8192, "own", 320.0, 5, None, 200.0, "fp8", products="fp8"),
    ]
    ceilings = Ceilings("a card", 2e12, 5e10, {"bf16": 7e14})
    plans: list[Plan] = []

    def time_released(plan: Plan, on_ceilings: object, on_model: object, on_row: object) -> StepTimes:
        del on_model
        plans.append(plan)
        on_ceilings(ceilings)  # type: ignore[operator]
        for row in rows:
            on_row(row)  # type: ignore[operator]
        return StepTimes(ceilings, 9, 5, 7, {"op": "why"}, rows)

    monkeypatch.setattr(steps, "time_released", time_released)
    plain = CliRunner().invoke(app, ["bench", "steps", "--length", "64K"])
    assert plain.exit_code == 0
    assert plans == [Plan((1 << 16,))]
    lines = [line.split() for line in plain.stdout.splitlines()]
    assert ["decode", "1", "1M", "replayed", "2.500", "400.0", "2.250", "80", "%"] in lines
    assert ["prefill", "8,192", "16K", "own", "400.000", "20,480.0", "50", "%"] in lines
    assert ["prefill", "fp8", "8,192", "16K", "own", "320.000", "25,600.0", "62", "%"] in lines
    assert "op ran as plain PyTorch: why" in plain.stderr
    found = json.loads(CliRunner().invoke(app, ["bench", "steps", "--json"]).stdout)
    assert plans[1] == Plan((1 << 16, 1 << 20), with_parts=True)
    assert found["ceilings"]["device"] == "a card"
    assert (found["parameters"], found["weight_bytes"], found["peak_bytes"]) == (9, 5, 7)
    assert [row["tokens_per_second"] for row in found["rows"]] == [400.0, 20480.0, 25600.0]
    assert [row["of_ceiling"] for row in found["rows"]] == [0.8, 0.5, 0.625]
    assert found["rows"][0]["parts"] == {"head": 0.125}


def test_made_selections_fit_other_sizes() -> None:
    table = Replay.made(small_config(), HISTORY, TOKENS, 0.64, CPU).of(HISTORY, TOKENS)
    own = (HISTORY + torch.arange(TOKENS)) // BLOCK
    assert torch.equal(table[..., 0], torch.zeros(2, TOKENS, dtype=torch.int32))
    assert torch.equal(table[0, :, -3:], (own[:, None] + torch.arange(-2, 1)).int())
    assert (table.diff(dim=-1) > 0).all()
