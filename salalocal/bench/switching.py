"""What it costs to go from one long session to another, and to fork one. Their memory is made up.

On a GPU the model has MiniCPM-SALA's sizes. On a processor only what sessions keep per token has: K and V of 2 heads of
128 in 8 layers and their compressed keys; hidden size and heads are an eighth, and with them the linear states.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

import torch

from salalocal import kv_tiers, planner
from salalocal.bench.clock import settle
from salalocal.bench.made_model import make_history, make_network, released_config
from salalocal.bench.steps import MADE_UP
from salalocal.cache.tiered_store import TieredStore
from salalocal.config import ModelConfig
from salalocal.engine.load import make_tiers
from salalocal.engine.out_of_memory import available_bytes
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.session import Session
from salalocal.errors import DoesNotFit
from salalocal.model.network import Network

# For K and V on the device where they are in host memory: a sixteenth of a million tokens of the released model.
KV_BUDGET_BYTES = 512 << 20
_WARM_UP_STEPS, _STEPS, _REPEATS = 6, 16, 3
# A room for so many tokens more never moves while it is measured.
_SPARE_TOKENS = 1024


@dataclass(frozen=True)
class SwitchTimes:
    """Milliseconds by the wall clock; all but the first two are more than a plain step, and the worst of several.

    Attributes:
        tokens: of each session, at the beginning.
        kept: where K and V are.
        device: that computes.
        model: "full size" or "narrow".
        step_ms: a plain step, from a token on the host to the next one there; the median.
        fork_call_ms: of `Session.fork`.
        first_ms: the first step of a session that has not answered yet, after steps of another.
        switch_ms: the first step of a session after steps of another.
        fork_ms: from the call of `fork` to the fork's first token.
        forked_ms: the next step of the session that was forked.
        later_ms: the slowest of the fork's next steps.
    """

    tokens: int
    kept: str
    device: str
    model: str
    step_ms: float
    fork_call_ms: float
    first_ms: float
    switch_ms: float
    fork_ms: float
    forked_ms: float
    later_ms: float


def time_switching(tokens: int, device: torch.device, on_row: Callable[[SwitchTimes], None]) -> list[SwitchTimes]:
    """Two sessions of `tokens` tokens each: with K and V on the device, then in host memory.

    Raises:
        DoesNotFit: two sessions exceed the free memory.
    """
    is_gpu = device.type == "cuda"
    config = released_config() if is_gpu else narrow_config()
    network = make_network(config, torch.bfloat16, device)
    rows = []
    for budget in (None, KV_BUDGET_BYTES):
        _check_fits(network, tokens, budget)
        row = time_pair(network, tokens, budget)
        rows.append(replace(row, model="full size" if is_gpu else "narrow"))
        on_row(rows[-1])
        gc.collect()
        if is_gpu:
            torch.cuda.empty_cache()
    return rows


def narrow_config() -> ModelConfig:
    """The released layers and K/V heads, with 4 query and 4 linear heads and matrices of 512 columns."""
    released = released_config()
    return replace(
        released, hidden_size=512, num_attention_heads=4, intermediate_size=512, vocab_size=512, lightning_nkv=4,
        quantization=None,
    )  # fmt: skip


def time_pair(network: Network, tokens: int, kv_budget: int | None) -> SwitchTimes:
    """One row, of any model with block selection."""
    tiers = None if kv_budget is None else _tiers(network, kv_budget)
    one, other = (_Answering(network, tokens, tiers) for _ in range(2))
    one.steps(_WARM_UP_STEPS)
    step = median(one.steps(_STEPS))
    first = other.step()
    other.steps(_WARM_UP_STEPS)
    switches = []
    for _ in range(_REPEATS):
        for each in (one, other):
            switches.append(each.step())
            each.steps(2)
    calls, forks, forked, later = [], [], [], []
    for _ in range(_REPEATS):
        one.go_to_an_edge()
        begun = perf_counter()
        fork = one.fork()
        calls.append(1e3 * (perf_counter() - begun))
        fork.step()
        forks.append(1e3 * (perf_counter() - begun))
        forked.append(one.step())
        later += fork.steps(_WARM_UP_STEPS)
    return SwitchTimes(
        tokens,
        "device" if tiers is None else "host",
        torch.cuda.get_device_name() if network.device.type == "cuda" else "processor",
        "",
        step,
        max(calls),
        first - step,
        max(switches) - step,
        max(forks) - step,
        max(forked) - step,
        max(later) - step,
    )


class _Answering:
    """A session that answers greedily, each token from the one before."""

    def __init__(
        self, network: Network, tokens: int, tiers: TieredStore | None, session: Session | None = None
    ) -> None:
        self._network = network
        self._tiers = tiers
        if session is None:
            room = tokens + _SPARE_TOKENS
            cache = make_history(network.config, tokens, room, network.dtype, network.device, tiers)
            session = Session(network, cache, 1, 2 * room, record_selection=False, model=MADE_UP)
            session.token_ids.extend([0] * tokens)
        self.session = session
        self._sampler = Sampler(Sampling())
        self._token = 0

    def step(self) -> float:
        """Milliseconds."""
        settle(self._network.device)
        begun = perf_counter()
        self._token = self.session.step_and_choose(self._token, self._sampler)
        return 1e3 * (perf_counter() - begun)

    def steps(self, count: int) -> list[float]:
        """Milliseconds of each."""
        return [self.step() for _ in range(count)]

    def go_to_an_edge(self) -> None:
        """To where the next token completes windows of compressed keys, which a fork shares until then."""
        sparse = self._network.config.sparse
        assert sparse is not None
        while (self.session.length + 1) % (4 * sparse.kernel_stride):
            self.step()
        settle(self._network.device)

    def fork(self) -> _Answering:
        """Goes on from here by itself."""
        return _Answering(self._network, self.session.length, self._tiers, self.session.fork())


def _tiers(network: Network, kv_budget: int) -> TieredStore:
    return make_tiers(network, kv_tiers.tiers(network.config, network.dtype.itemsize, kv_budget))


def _check_fits(network: Network, tokens: int, kv_budget: int | None) -> None:
    sizes = planner.footprint(network.config, network.dtype.itemsize, 1)
    kv, host = 2 * sizes.kv_bytes(tokens), torch.device("cpu")
    # What a fork keeps by itself too.
    needs = {network.device: 3 * (sizes.compressed_bytes(tokens) + sizes.session_bytes)}
    needs[network.device] += kv if kv_budget is None else kv_budget
    if kv_budget is not None:
        needs[host] = needs.get(host, 0) + kv
    elif network.device.type == "cuda":
        # Storage that grows has room for an eighth more, which a processor does not touch.
        needs[network.device] += kv // 8
    for where, needed in needs.items():
        free = available_bytes(where)
        if needed > free:
            raise DoesNotFit(
                f"two sessions of {tokens:,} tokens need {needed / 2**30:.1f} GiB of "
                f"{'GPU' if where.type == 'cuda' else 'main'} memory and {free / 2**30:.1f} GiB are free; name fewer "
                "--tokens",
                needed_bytes=needed,
                available_bytes=free,
            )
