"""A decode step and a prefill chunk of the released sizes on the meta device: what they launch, and that they read
nothing back.

Tensors there have shapes and no numbers, so a step that asks for one, as waiting for a GPU would be, fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from meta_network import META, empty, network
from triton_gate import SHARED_BYTES, Launch, assert_fits, launches

from salalocal.cache import host_memory
from salalocal.cache.session_cache import SessionCache
from salalocal.cache.tiered_store import TieredStore
from salalocal.engine.decode_graph import DecodeGraph, StepKind
from salalocal.engine.sampling import Choice, Sampler, Sampling
from salalocal.model.narrow import NARROW_DTYPES, narrowed
from salalocal.model.network import Network
from salalocal_kernels import coverage, dispatch, watch
from salalocal_kernels.gpu import early, scaled_linear
from salalocal_quant.packed import SCRATCH_BYTES

GREEDY = Choice(0.0, 0, 1.0, 0.0)
DRAWN = Choice(0.8, 40, 0.9, 0.05)
# 40,000 tokens read: sparse, with room for 40,960.
LENGTH = 40_000


@pytest.fixture(autouse=True)
def _kernels_are_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dispatch, "_device_type", lambda _: "cuda")
    with watch() as served:
        yield
    assert served.fallbacks == {}


def launches_of(kind: StepKind, length: int = LENGTH, tiers: TieredStore | None = None) -> list[Launch]:
    made = network()
    cache = SessionCache.empty(made.config, torch.bfloat16, META, tiers)
    cache.extend(length)
    cache.length = length
    graph = DecodeGraph(made, max_tokens=1 << 20)
    sampler = Sampler(Sampling(temperature=kind.choice.temperature if kind.choice else 0))
    return launches(lambda: graph.step(cache, 5, kind, sampler))


# A chunk chooses in four tiles and reads at once.
SPARSE_TILES = [
    *["_coarse_lse_kernel", "_block_scores_kernel", "_select_blocks_kernel"] * 4,
    "_union_blocks_kernel", "_sparse_attention_kernel",
]  # fmt: skip
FEED_FORWARD = ["_rms_norm_kernel", "_packed_silu_mul_kernel", "_packed_linear_kernel", "_rms_norm_kernel"]


def test_what_a_step_launches() -> None:
    names = [launch.kernel.fn.__name__ for launch in launches_of(StepKind(True, False, GREEDY))]
    assert names == [
        "_rope_table_kernel", "_gather_rows_kernel", "_rms_norm_kernel",
        "_packed_linear_kernel", "_append_token_kernel", "_coarse_lse_kernel", "_block_scores_kernel",
        "_select_blocks_kernel", "_attend_split_kernel", "_combine_splits_kernel", "_norm_gate_kernel",
        "_packed_linear_kernel", *FEED_FORWARD,
        "_packed_linear_kernel", "_lightning_decode_kernel", "_packed_linear_kernel", *FEED_FORWARD,
        "_packed_linear_kernel", "_greedy_token_kernel", "_advance_kernel",
    ]  # fmt: skip


def in_host_memory(slots: int = 600) -> TieredStore:
    """One layer's; host memory comes in segments of 64 pages."""
    return TieredStore(1, 2, 128, 64, torch.bfloat16, META, slots, 200, 4 << 20)


@pytest.fixture
def _everything_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "register", lambda *_: "")
    monkeypatch.setattr(host_memory, "unregister", lambda *_: None)


@pytest.mark.usefixtures("_everything_is_registered")
def test_what_a_step_launches_with_kv_in_host_memory() -> None:
    made = launches_of(StepKind(True, False, GREEDY), tiers=in_host_memory())
    names = [launch.kernel.fn.__name__ for launch in made]
    fetch = ["_assign_slots_kernel", "_copy_blocks_kernel"]
    assert names[3:17] == [
        "_packed_linear_kernel", *fetch, "_write_token_kernel", "_extend_compressed_keys_kernel", "_coarse_lse_kernel",
        "_block_scores_kernel", "_select_blocks_kernel", *fetch, "_attend_split_kernel", "_combine_splits_kernel",
        "_norm_gate_kernel", "_packed_linear_kernel",
    ]  # fmt: skip


@pytest.mark.usefixtures("_everything_is_registered")
@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("length", [3000, LENGTH, 1_000_000])
def test_a_step_with_kv_in_host_memory_reads_nothing_back(length: int, is_watched: bool) -> None:
    kind = StepKind(length >= 8192, is_watched, DRAWN)
    names = Counter(launch.kernel.fn.__name__ for launch in launches_of(kind, length, in_host_memory()))
    assert names["_assign_slots_kernel"] == names["_copy_blocks_kernel"] == 2
    assert names["_attend_split_kernel"] == names["_write_token_kernel"] == 1


@pytest.mark.usefixtures("_everything_is_registered")
@pytest.mark.parametrize("capability", [86, 90])
def test_every_launch_of_a_step_with_kv_in_host_memory_compiles(capability: int) -> None:
    wanted = ("_assign_slots", "_copy_blocks", "_write_token", "_extend_compressed", "_attend_split", "_combine_splits")
    made = launches_of(StepKind(True, False, None), tiers=in_host_memory())
    compile_each([launch for launch in made if launch.kernel.fn.__name__.startswith(wanted)], capability)


def test_memory_that_is_not_registered_is_told_once_and_keeps_the_step_from_being_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter(["", "out of memory", "never asked"])
    monkeypatch.setattr(host_memory, "register", lambda *_: next(answers))
    monkeypatch.setattr(host_memory, "unregister", lambda *_: None)
    tiers = in_host_memory()
    before = tiers.storage
    tiers.reserve(200)
    (record,) = caplog.records
    assert "CUDA does not register it (out of memory)" in record.getMessage()
    assert tiers.storage[-1] is not before[-1], "a step recorded before is recorded anew"
    layer = tiers.layer(0)
    blocks = empty(2, 96, dtype=torch.int32)
    assert coverage.fetch_blocks(blocks, blocks, 0, layer.host, layer.pool) == "host memory that the GPU cannot read"
    row = empty(2, 128)
    assert coverage.write_token(row, row, row, row, 0, layer.host, layer.pool) == "host memory that the GPU cannot read"


@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("choice", [None, GREEDY, DRAWN], ids=["logits", "greedy", "drawn"])
@pytest.mark.parametrize("length", [3000, LENGTH, 1_000_000])
def test_a_step_reads_nothing_back(length: int, choice: Choice | None, is_watched: bool) -> None:
    names = Counter(
        launch.kernel.fn.__name__ for launch in launches_of(StepKind(length >= 8192, is_watched, choice), length)
    )
    assert names["_attend_split_kernel"] == names["_lightning_decode_kernel"] == 1
    assert names["_block_scores_kernel"] == (length >= 8192)
    assert names["_random_uniform_kernel"] == (choice is DRAWN)


@pytest.mark.parametrize("is_sparse", [True, False])
def test_what_a_chunk_launches(is_sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRATCH_BYTES, "meta", SCRATCH_BYTES["cuda"])
    made = network()
    cache = SessionCache.empty(made.config, torch.bfloat16, META)
    ids = empty(8192, dtype=torch.int64)
    names = [launch.kernel.fn.__name__ for launch in launches(lambda: made.read(ids, cache, is_sparse, None))]
    unpack = "_unpack_planes_kernel"
    feed_forward = ["_rms_norm_kernel", unpack, unpack, "_silu_mul_kernel", unpack, "_rms_norm_kernel"]
    assert names == [
        "_rope_table_kernel", "_gather_rows_kernel", "_rms_norm_kernel",
        *[unpack] * 4, "_extend_compressed_keys_kernel", *(SPARSE_TILES if is_sparse else []), "_norm_gate_kernel",
        unpack, *feed_forward,
        *[unpack] * 4, "_qk_norm_rope_kernel", "_lightning_prefill_kernel", "_norm_gate_kernel", unpack,
        *feed_forward,
    ]  # fmt: skip


@pytest.mark.parametrize("name", NARROW_DTYPES)
def test_what_a_chunk_in_eight_bits_launches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has one input is rounded once; q and k of the sparse layer are unpacked to bfloat16 as ever."""
    monkeypatch.setitem(SCRATCH_BYTES, "meta", SCRATCH_BYTES["cuda"])
    monkeypatch.setattr(coverage, "_capability", lambda _: (9, 0))
    made = chunk_in_eight_bits(name)
    names = [launch.kernel.fn.__name__ for launch in launches(made)]
    round_, times, unpack = "_quantize_tokens_kernel", ["_unpack_planes_kernel", "_scaled_linear_kernel"], 2
    feed_forward = ["_rms_norm_kernel", round_, *times * 2, "_silu_mul_codes_kernel", *times, "_rms_norm_kernel"]
    assert names == [
        "_rope_table_kernel", "_gather_rows_kernel", "_rms_norm_kernel",
        round_, *["_unpack_planes_kernel"] * unpack, *times * 2, "_extend_compressed_keys_kernel", *SPARSE_TILES,
        "_norm_gate_kernel", round_, *times, *feed_forward,
        round_, *times * 4, "_qk_norm_rope_kernel", "_lightning_prefill_kernel", "_norm_gate_kernel", round_, *times,
        *feed_forward,
    ]  # fmt: skip


def chunk_in_eight_bits(name: str) -> Callable[[], object]:
    narrow: list[Network] = []
    launches(lambda: narrow.append(narrowed(network(), name)))
    (made,) = narrow
    cache = SessionCache.empty(made.config, torch.bfloat16, META)
    ids = empty(8192, dtype=torch.int64)
    return lambda: made.read(ids, cache, True, None)


@pytest.mark.parametrize("name", NARROW_DTYPES)
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_launch_of_eight_bits_compiles(capability: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "fp8" and capability < 89:
        pytest.skip("fp8 needs sm_89")
    monkeypatch.setitem(SCRATCH_BYTES, "meta", SCRATCH_BYTES["cuda"])
    monkeypatch.setattr(coverage, "_capability", lambda _: (capability // 10, capability % 10))
    monkeypatch.setattr(scaled_linear, "_capability", lambda _: capability)
    monkeypatch.setattr(scaled_linear, "_ROWWISE_CAPABILITY", None)
    wanted = ("_quantize_tokens_kernel", "_unpack_planes_kernel", "_scaled_linear_kernel", "_silu_mul_codes_kernel")
    made = launches(chunk_in_eight_bits(name))
    compile_each([launch for launch in made if launch.kernel.fn.__name__ in wanted], capability)


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("length", [3000, LENGTH, 1_000_000])
def test_every_launch_of_a_step_compiles(capability: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As launched where a position and a length lie in memory, on cards of today early; shared memory and registers
    suffice on every card."""
    monkeypatch.setattr(early, "capability", lambda _: capability)
    compile_each(launches_of(StepKind(length >= 8192, False, DRAWN), length), capability)


def test_which_launches_begin_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a step. Scores, selection and gates do not: beginning early made a step 0.17 ms slower on an H100."""
    monkeypatch.setattr(early, "capability", lambda _: 90)
    made = launches_of(StepKind(True, False, GREEDY))
    late = [launch.kernel.fn.__name__ for launch in made if not launch.options.get("launch_pdl")]
    own = ["_coarse_lse_kernel", "_block_scores_kernel", "_select_blocks_kernel", "_norm_gate_kernel"]
    assert set(late) == {"_gather_rows_kernel", *own}
    assert all(launch.arguments["IS_EARLY"] for launch in made if launch.options.get("launch_pdl"))


def test_no_launch_of_a_chunk_that_selects_begins_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRATCH_BYTES, "meta", SCRATCH_BYTES["cuda"])
    monkeypatch.setattr(early, "capability", lambda _: 90)
    made = network()
    cache = SessionCache.empty(made.config, torch.bfloat16, META)
    ids = empty(8192, dtype=torch.int64)
    found = launches(lambda: made.read(ids, cache, True, None))
    names = {launch.kernel.fn.__name__ for launch in found if launch.options.get("launch_pdl")}
    assert names == {"_rms_norm_kernel", "_rope_table_kernel"}


def compile_each(made: list[Launch], capability: int) -> None:
    """Every launch once that differs from the others in what it is compiled for."""
    done = set()
    for launch in made:
        constants = {name: value for name, value in launch.arguments.items() if not isinstance(value, Tensor | int)}
        key = launch.kernel.fn.__name__, str(sorted(constants.items(), key=str)), str(launch.options)
        if key not in done:
            done.add(key)
            assert_fits(launch, capability)
