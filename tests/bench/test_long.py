"""`bench long` on a processor, with a small model: texts, stages, rows that are there, out of memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from made_sizes import PEER_SHAPE, small_config

from salalocal.bench import long
from salalocal.bench.dense_peer import DensePeer
from salalocal.bench.long import Plan, made_ids, missing, open_session, time_texts
from salalocal.bench.long_peer import time_peer
from salalocal.bench.long_rows import LongRow, LongTable, Traffic
from salalocal.bench.made_model import make_network, released_config
from salalocal.bench.scoring import scoring_seconds
from salalocal.bus_times import Bus
from salalocal.engine.progress import Progress
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.session import Session
from salalocal.errors import EngineFailure
from salalocal.model.network import Network
from salalocal.times import Rates, predict
from salalocal_kernels import watch

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PLAN = Plan(lengths=(256, 128), selections=("own", "replayed", "all-new"), chunk_tokens=64, steps=3)
RATES = Rates(1e12, 1e10, 1e7, 9e10, 4e10, 3e10, 0.002)


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network(small_config(), torch.float32, CPU)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """Every session that was opened, warm-ups too."""
    made: list[Session] = []

    def open_and_keep(*arguments: object) -> Session:
        made.append(open_session(*arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(long, "open_session", open_and_keep)
    return made


def rows_of(network: Network, plan: Plan, table: LongTable | None = None) -> list[LongRow]:
    told: list[LongRow] = []
    time_texts(network, plan, table or LongTable(None), "a card", "a run", told.append)
    return told


def test_a_row_for_every_text(network: Network, sessions: list[Session]) -> None:
    rows = rows_of(network, PLAN)
    assert [(row.selection, row.tokens) for row in rows] == [
        (kind, tokens) for kind in ("own", "replayed", "all-new") for tokens in (128, 256)
    ]
    for row in rows:
        assert row.ttft_seconds is not None
        assert row.ttft_seconds > 0
        assert row.decode_ms is not None
        assert row.tokens_per_second == pytest.approx(1e3 / row.decode_ms)
        assert (row.staged, row.steps, row.note) == (False, 3, "")
        assert (row.device, row.run, row.weight_bytes) == ("a card", "a run", network.nbytes)
        assert row.peak_host_bytes is not None
        assert row.peak_host_bytes > 100 << 20
        assert row.peak_device_bytes is row.pin_seconds is row.prefill_traffic is row.decode_traffic is None
    # A warm-up of two chunks, then the text and its steps.
    assert [session.length for session in sessions] == [128, 128 + 8, 128, 256 + 8] * 3
    assert sessions[1].token_ids[:128] == made_ids(network.config, 128)


def test_one_text_gives_the_rows_of_shorter_ones(network: Network, sessions: list[Session]) -> None:
    short, whole = rows_of(network, replace(PLAN, selections=("own",), staged=True))
    assert (short.tokens, short.staged, short.peak_host_bytes) == (128, True, None)
    assert (whole.tokens, whole.staged) == (256, False)
    assert short.decode_ms is not None
    assert short.ttft_seconds is not None
    assert whole.ttft_seconds is not None
    assert short.ttft_seconds < whole.ttft_seconds
    # The answer on the way was taken back: the text is what it is in one piece.
    plain = open_session(network, 300, 64)
    logits = plain.prefill(made_ids(network.config, 256))
    assert sessions[-1].token_ids[:256] == plain.token_ids
    token = Sampler(Sampling())(logits)
    assert sessions[-1].token_ids[256] == token


def test_the_clock_stands_still_while_a_stage_answers(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(long, "perf_counter", lambda: now)

    def read_for_a_second(self: Network, *arguments: object, **named: object) -> object:
        nonlocal now
        now += 1.0
        return read(self, *arguments, **named)  # type: ignore[arg-type]

    read = Network.read
    monkeypatch.setattr(Network, "read", read_for_a_second)
    short, whole = rows_of(network, replace(PLAN, selections=("all-new",), staged=True))
    # A second per chunk of 64 tokens; the steps in between took some too.
    assert (short.ttft_seconds, whole.ttft_seconds) == (2.0, 4.0)


def test_rows_that_are_there_are_not_measured_again(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    plan = replace(PLAN, selections=("own",))
    (first,) = rows_of(network, replace(plan, lengths=(128,)), LongTable(path))
    table = LongTable(path)
    assert table.rows == [first]
    assert [row.tokens for row in missing(plan, table, "a card")] == [256]
    assert [row.tokens for row in missing(plan, table, "another card")] == [128, 256]
    for other in (replace(plan, prefill="int8"), replace(plan, gpu_memory=8 << 30), replace(plan, chunk_tokens=32)):
        assert [row.tokens for row in missing(other, table, "a card")] == [128, 256]
    (second,) = rows_of(network, plan, table)
    assert LongTable(path).rows == [first, second]
    assert rows_of(network, plan, LongTable(path)) == []


def test_a_row_noted_on_the_way_serves_where_stages_do(network: Network) -> None:
    table = LongTable(None)
    staged = replace(PLAN, selections=("own",), staged=True)
    rows_of(network, staged, table)
    assert missing(staged, table, "a card") == []
    assert [row.tokens for row in missing(replace(staged, staged=False), table, "a card")] == [128]


def test_out_of_memory_is_a_row(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Network.read

    def read_some(self: Network, ids: Tensor, cache: object, *rest: object, **named: object) -> object:
        if cache.length >= 128:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError
        return read(self, ids, cache, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Network, "read", read_some)
    plan = replace(PLAN, selections=("own",), staged=True)
    monkeypatch.setattr(long, "_answered", lambda _session, row, *_rest: row)
    table = LongTable(None)
    short, whole = rows_of(network, plan, table)
    assert (short.note, short.ttft_seconds is None) == ("", False)
    assert (whole.note, whole.ttft_seconds, whole.staged) == ("out of memory", None, False)
    assert missing(plan, table, "a card") == []


def test_chunks_that_had_to_be_halved_are_no_row(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = Network.read, []

    def read_but_once(self: Network, ids: Tensor, cache: object, *rest: object, **named: object) -> object:
        if cache.length >= 128 and len(ids) > 1 and not calls:  # type: ignore[attr-defined]
            calls.append(1)
            raise torch.OutOfMemoryError
        return read(self, ids, cache, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Network, "read", read_but_once)
    short, whole = rows_of(network, replace(PLAN, selections=("own",)), LongTable(None))
    assert (short.note, whole.note, whole.ttft_seconds) == ("", "out of memory", None)


def test_what_a_session_moves_is_told(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that keep K/V in main memory count."""

    class Counting(Session):
        class traffic:
            hits, misses, bytes, streamed_bytes, pin_seconds = 0, 0, 0, 0, 0.25

        def read(self, *arguments: object, **named: object) -> Iterator[Progress]:
            for progress in super().read(*arguments, **named):  # type: ignore[arg-type]
                self.traffic.pin_seconds += 0.5
                yield progress

        def step_and_choose(self, token_id: int, sampler: Sampler) -> int:
            self.traffic.hits += 87
            self.traffic.misses += 13
            self.traffic.bytes += 1000
            return super().step_and_choose(token_id, sampler)

    monkeypatch.setattr(long, "Session", Counting)
    (row,) = rows_of(network, replace(PLAN, lengths=(128,), selections=("own",)))
    assert row.pin_seconds == 1.0, "of its two chunks; not what was pinned for those of the warm-up"
    assert row.prefill_traffic == Traffic(0, 0, 0)
    assert row.prefill_traffic.hit_rate is None
    assert row.decode_traffic == Traffic(3 * 87, 3 * 13, 3000)
    assert row.decode_traffic.hit_rate == pytest.approx(0.87)


def test_the_plan_stands_beside_what_was_measured(network: Network) -> None:
    plan = replace(PLAN, lengths=(128,), selections=("own",), rates=RATES)
    (row,) = rows_of(network, plan)
    told = predict(network.config, RATES, 128, 64, 4, unpacked=False)
    assert (row.planned_seconds, row.planned_tokens_per_second) == (told.first_token_seconds, told.tokens_per_second)
    assert row.ttft_seconds is not None
    assert row.plan_ratio == pytest.approx(told.first_token_seconds / row.ttft_seconds)
    assert row.plan_decode_ratio is not None


def test_no_plan_without_its_rates(network: Network) -> None:
    row = LongRow("salalocal", 128, "own", "fp8", None, 64, False, "a card", "a run")
    for plan in (PLAN, replace(PLAN, rates=RATES, prefill="fp8"), replace(PLAN, rates=RATES, kv_budget=1 << 20)):
        assert long._planned(row, network, plan) == row
        assert (row.plan_ratio, row.plan_decode_ratio) == (None, None)
    away = replace(PLAN, rates=replace(RATES, bus=Bus(1e9, 1e9, 1e9, 1e-5, 1e-8, 1e-10)), kv_budget=1 << 20)
    there, here = (long._planned(row, network, plan) for plan in (away, replace(away, kv_budget=None)))
    assert there.planned_tokens_per_second is not None
    assert here.planned_tokens_per_second is not None
    assert there.planned_tokens_per_second < here.planned_tokens_per_second


def test_nan_is_no_time(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "logits", lambda *_: torch.full((1, 300), torch.nan))
    with pytest.raises(EngineFailure, match="NaN or Inf"):
        rows_of(network, replace(PLAN, lengths=(128,), selections=("own",)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_texts_on_a_gpu() -> None:
    """As the released sizes are, in seconds: every op by its kernel, every selection, stages, memory, the peer."""
    device = torch.device("cuda")
    made = make_network(small_config(), torch.bfloat16, device)
    table = LongTable(None)
    with watch() as served:
        time_texts(made, replace(PLAN, staged=True), table, "a card", "a run", lambda _: None)
    assert served.fallbacks == {}
    assert [(row.selection, row.tokens, row.note) for row in table.rows] == [
        (kind, tokens, "") for kind in ("own", "replayed", "all-new") for tokens in (128, 256)
    ]
    for row in table.rows[1::2]:
        assert row.peak_device_bytes is not None
        assert row.peak_device_bytes > 100 << 20
    assert scoring_seconds(released_config(), 1 << 16) > 0
    time_peer(
        lambda: DensePeer(replace(PEER_SHAPE, head_dim=64), torch.bfloat16, device),
        (64,), table, "a card", "a run", lambda _: None,
    )  # fmt: skip
    assert table.rows[-1].ttft_seconds is not None


def test_k_and_v_in_host_memory_are_counted(network: Network) -> None:
    found = {}
    for kv_budget in (None, 300_000):
        table = LongTable(None)
        plan = Plan((512,), chunk_tokens=64, steps=3, kv_budget=kv_budget)
        time_texts(network, plan, table, "a card", "run", lambda _: None)
        (found[kv_budget],) = table.rows
    assert found[None].decode_traffic is found[None].prefill_traffic is None
    traffic = found[300_000].decode_traffic
    assert traffic is not None
    assert traffic.hits > 0
    assert found[300_000].prefill_traffic is not None
    assert found[300_000].prefill_traffic.nbytes > 0
    plan, table = replace(plan, kv="fp8"), LongTable(None)
    time_texts(network, plan, table, "a card", "run", lambda _: None)
    (rounded,) = table.rows
    assert rounded.kv == "fp8"
    assert rounded.setting != found[300_000].setting
    assert rounded.prefill_traffic is not None
    assert rounded.prefill_traffic.nbytes < 0.7 * found[300_000].prefill_traffic.nbytes
    plan, table = replace(plan, kv="full", is_pinned=False), LongTable(None)
    time_texts(network, plan, table, "a card", "run", lambda _: None)
    (unpinned,) = table.rows
    assert not unpinned.is_pinned
    assert unpinned.setting != found[300_000].setting
