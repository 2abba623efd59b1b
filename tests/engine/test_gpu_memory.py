"""The cap on a GPU's memory, over a made-up card: what is counted, what is set, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from naive_sala import tiny_config, write_model

import salalocal
from salalocal.engine import gpu_memory
from salalocal.engine.gpu_memory import Held, allowed_bytes, cap, held, lift_cap, outside_bytes, peak_bytes
from salalocal.engine.out_of_memory import available_bytes
from salalocal.errors import DoesNotFit, InvalidRequest

GIB, MIB = 1 << 30, 1 << 20
CARD = torch.device("cuda")


class Card:
    """80 GiB, of which PyTorch has reserved 2 and has tensors in 1; 3 are taken in all."""

    fraction = 1.0
    free = 77 * GIB
    reserved, allocated, most_reserved = 2 * GIB, GIB, 5 * GIB

    def limit(self, fraction: float, device: object) -> None:
        """As PyTorch, which refuses torch.device("cuda")."""
        assert device == 0
        self.fraction = fraction

    def limit_of(self, device: object) -> float:
        assert device == 0
        return self.fraction


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (card.free, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: card.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: card.allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: card.most_reserved)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", card.limit)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", card.limit_of, raising=False)
    monkeypatch.setattr(torch, "ones", lambda *shape, **_device: torch.zeros(*shape))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(gpu_memory, "_QUERY", ("no-such-tool",))
    return card


def told(text: str) -> Callable[..., object]:
    return lambda *_words, **_options: SimpleNamespace(stdout=text)


@pytest.mark.usefixtures("card")
class TestHeld:
    def test_nvidia_smi_counts_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        me = os.getpid()
        monkeypatch.setattr(subprocess, "run", told(f"{me + 1}, 900\n{me}, 1536\n"))
        assert held(CARD) == Held(1536 * MIB, "process")

    @pytest.mark.parametrize("text", ["", "1, 900\n", f"{os.getpid()}, [N/A]\n", "No devices were found\n"])
    def test_where_it_does_not_know_us_the_card_counts(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setattr(subprocess, "run", told(text))
        assert held(CARD) == Held(3 * GIB, "card")

    def test_without_the_tool_too(self) -> None:
        assert held(CARD) == Held(3 * GIB, "card")

    def test_nvml_itself_is_asked_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        processes = [SimpleNamespace(pid=os.getpid() + n, usedGpuMemory=(n + 1) * GIB) for n in range(2)]
        nvml = SimpleNamespace(
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
            nvmlDeviceGetComputeRunningProcesses=lambda uuid: processes if uuid == "GPU-1-2" else [],
        )
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1-2"))
        assert held(CARD) == Held(GIB, "process")


def test_the_part_outside_of_pytorch_and_the_peak(card: Card) -> None:
    assert outside_bytes(CARD) == GIB
    assert peak_bytes(CARD) == Held(6 * GIB, "card")
    card.free = 79 * GIB
    assert outside_bytes(CARD) == 0


def test_pytorch_gets_what_cuda_leaves_of_the_cap(card: Card) -> None:
    left = cap(CARD, 8 * GIB, 5 * GIB, "a model")
    assert left == 7 * GIB - 128 * MIB
    assert card.fraction == pytest.approx(left / (80 * GIB))
    assert allowed_bytes(CARD) == pytest.approx(left, abs=1)
    # All that the cap leaves beside the tensors that are there.
    assert available_bytes(CARD) == pytest.approx(left - GIB, abs=2)
    lift_cap(torch.device("cuda:0"))
    assert card.fraction == 1.0


def test_without_a_cap_the_free_memory_counts(card: Card) -> None:
    assert allowed_bytes(CARD) == 80 * GIB
    assert available_bytes(CARD) == int(0.95 * 78 * GIB)
    card.free = 10 * GIB
    assert available_bytes(CARD) == int(0.95 * 11 * GIB)


def test_weights_that_exceed_the_cap(card: Card) -> None:
    with pytest.raises(DoesNotFit) as refused:
        cap(CARD, 6 * GIB, 5 * GIB, "a model")
    assert str(refused.value) == (
        "a model: the weights take 5.00 GiB, and of 6.00 GiB of GPU memory CUDA itself takes 1.12 GiB; allow "
        "at least 6.12 GiB"
    )
    assert (refused.value.needed_bytes, refused.value.available_bytes) == (6 * GIB + 128 * MIB, 6 * GIB)
    assert card.fraction == 1.0


def test_a_processor_has_no_such_cap(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny", tiny_config())
    with pytest.raises(InvalidRequest, match="gpu_memory is for a GPU, and tiny is to run on the processor"):
        salalocal.load(folder, device="cpu", gpu_memory=8 * GIB)
