"""The sampler: its filters by hand, its draws by frequency, its seed, and what it refuses."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from salalocal.engine.sampling import Sampler, Sampling
from salalocal.errors import EngineFailure, InvalidRequest

# Probabilities 0.5, 0.25, 0.15, 0.1 in scrambled order.
PROBABILITIES = {2: 0.5, 0: 0.25, 3: 0.15, 1: 0.1}
LOGITS = torch.tensor([0.25, 0.1, 0.5, 0.15]).log()


def draw(sampling: Sampling, logits: torch.Tensor = LOGITS, times: int = 4000) -> dict[int, float]:
    sampler = Sampler(sampling)
    counts = Counter(sampler(logits) for _ in range(times))
    return {token: count / times for token, count in counts.items()}


def assert_frequencies(found: dict[int, float], expected: dict[int, float]) -> None:
    assert set(found) == set(expected)
    assert all(found[token] == pytest.approx(share, abs=0.04) for token, share in expected.items())


def scaled(tokens: list[int]) -> dict[int, float]:
    total = sum(PROBABILITIES[token] for token in tokens)
    return {token: PROBABILITIES[token] / total for token in tokens}


def test_greedy_takes_the_likeliest_and_of_equals_the_first() -> None:
    assert Sampler(Sampling())(LOGITS) == 2
    assert Sampler(Sampling())(torch.tensor([1.0, 3.0, 3.0])) == 1


def test_temperature_1_draws_by_probability() -> None:
    assert_frequencies(draw(Sampling(temperature=1.0)), PROBABILITIES)


def test_temperature_sharpens_and_flattens() -> None:
    squares = {token: p**2 for token, p in PROBABILITIES.items()}
    total = sum(squares.values())
    assert_frequencies(draw(Sampling(temperature=0.5)), {token: p / total for token, p in squares.items()})
    assert_frequencies(draw(Sampling(temperature=100.0)), dict.fromkeys(range(4), 0.25))


@pytest.mark.parametrize(("k", "left"), [(1, [2]), (2, [2, 0]), (3, [2, 0, 3]), (4, [2, 0, 3, 1]), (99, [2, 0, 3, 1])])
def test_top_k(k: int, left: list[int]) -> None:
    assert_frequencies(draw(Sampling(temperature=1.0, top_k=k)), scaled(left))


@pytest.mark.parametrize(
    ("p", "left"), [(1e-9, [2]), (0.5, [2]), (0.51, [2, 0]), (0.75, [2, 0]), (0.8, [2, 0, 3]), (0.95, [2, 0, 3, 1])]
)
def test_top_p_is_the_smallest_set_with_that_share(p: float, left: list[int]) -> None:
    assert_frequencies(draw(Sampling(temperature=1.0, top_p=p), LOGITS.double()), scaled(left))


@pytest.mark.parametrize(("p", "left"), [(1.0, [2]), (0.5, [2, 0]), (0.3, [2, 0, 3]), (0.1, [2, 0, 3, 1])])
def test_min_p_is_a_share_of_the_likeliest(p: float, left: list[int]) -> None:
    # A hair below the edge: 0.25 is exp(log(0.25)) only to rounding.
    assert_frequencies(draw(Sampling(temperature=1.0, min_p=p - 1e-7 * (p < 1))), scaled(left))


def test_filters_apply_one_after_another() -> None:
    # top_k leaves 0.5, 0.25, 0.15 of 0.9; of those top_p 0.8 keeps the first two (0.83).
    assert_frequencies(draw(Sampling(temperature=1.0, top_k=3, top_p=0.8)), scaled([2, 0]))


def test_equal_logits_are_cut_by_id() -> None:
    assert set(draw(Sampling(temperature=1.0, top_k=2), torch.zeros(5), times=200)) == {0, 1}


def test_top_p_on_the_edge_keeps_no_token_more_than_it_needs() -> None:
    # Four times exactly a quarter: two of them are half.
    assert set(draw(Sampling(temperature=1.0, top_p=0.5), torch.zeros(4), times=200)) == {0, 1}


def test_the_seed_decides() -> None:
    def answer(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler(LOGITS) for _ in range(50)]

    assert answer(1) == answer(1)
    assert len({tuple(answer(seed)) for seed in range(5)}) == 5


def test_the_seed_is_not_that_of_the_process() -> None:
    torch.manual_seed(0)
    one = draw(Sampling(temperature=1.0, seed=3), times=20)
    torch.manual_seed(1)
    assert draw(Sampling(temperature=1.0, seed=3), times=20) == one


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_tiny_temperatures_are_greedy(temperature: float, dtype: torch.dtype) -> None:
    sampling = Sampling(temperature=temperature, top_p=0.9, min_p=0.01)
    assert draw(sampling, 100 * LOGITS.to(dtype), times=20) == {2: 1.0}


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = LOGITS.clone()
    logits[2] = -torch.inf
    assert 2 not in draw(Sampling(temperature=100.0), logits)
    assert Sampler(Sampling())(logits) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[1.0, math.nan], [math.nan, 1.0], [1.0, math.inf], [-math.inf, -math.inf]], ids=str)
def test_nan_and_infinity_stop_the_answer(bad: list[float], temperature: float) -> None:
    with pytest.raises(EngineFailure, match="NaN or Inf"):
        Sampler(Sampling(temperature=temperature))(torch.tensor(bad))


def test_logits_are_not_written_to() -> None:
    logits = LOGITS.double()
    Sampler(Sampling(temperature=1.0, top_k=2, top_p=0.5, min_p=0.1))(logits)
    assert torch.equal(logits, LOGITS.double())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", 101), ("temperature", math.nan), ("temperature", math.inf),
        ("temperature", "hot"), ("temperature", None), ("top_k", -1), ("top_k", 1.5), ("top_p", 0.0), ("top_p", 1.1),
        ("min_p", -1), ("min_p", 2), ("seed", -1), ("seed", 1 << 63), ("seed", 1.0), ("max_tokens", 0),
        ("max_tokens", 2.0),
    ],
)  # fmt: skip
def test_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} is "):
        Sampling(**{name: value})


@pytest.mark.parametrize("stop", ["end", ("",), ("a", ""), (1,), ("x",) * 17], ids=str)
def test_stop_takes_texts(stop: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^stop "):
        Sampling(stop=stop)


def test_stop_takes_a_list_too() -> None:
    assert Sampling(stop=["a", "b"]).stop == ["a", "b"]
