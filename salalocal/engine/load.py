"""From a path or name to a ready engine: find, check, see that it fits, read. Knows no sessions."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from salalocal import choices, kv_tiers, planner
from salalocal.cache.tiered_store import TieredStore
from salalocal.choices import choose_packing
from salalocal.config import ModelConfig
from salalocal.engine.closer_look import closer_look_tokens
from salalocal.engine.devices import resolve_device, resolve_dtype
from salalocal.engine.engine import Engine
from salalocal.engine.gpu_memory import cap as cap_memory
from salalocal.engine.out_of_memory import available_bytes
from salalocal.errors import DoesNotFit, InvalidRequest
from salalocal.hub import find_model
from salalocal.model.narrow import NARROW_DTYPES, narrowed, why_not
from salalocal.model.network import Network
from salalocal.planner import Footprint, footprint
from salalocal.tokenizer import Tokenizer
from salalocal.weights.build import build_network, check_tensors
from salalocal.weights.fingerprint import fingerprint
from salalocal.weights.gguf_source import GgufSource
from salalocal.weights.safetensors_source import SafetensorsSource
from salalocal.weights.source import WeightSource
from salalocal_quant import MANY_TOKENS

_LOG = logging.getLogger(__name__)


def load(
    path_or_name: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    prefill: str = "full",
    kv_budget: int | None = None,
    gpu_memory: int | None = None,
    kv: str = "full",
) -> Engine:
    """Loads a model: a folder with config.json and safetensors, a .gguf file, or the name of one on this machine.

    Packed weights stay packed on a GPU. A CPU would spend most of its time unpacking them, again for every token, so
    there they are unpacked at load where the memory allows; `Engine.packing_note` says which.

    Args:
        path_or_name: a folder without a tokenizer loads for work with token ids.
        device: "auto" takes the GPU where there is one, "cpu", "cuda".
        dtype: of weights and activations. "auto": bfloat16 on a GPU and on CPUs that multiply it natively, else
            float32.
        prefill: how long chunks multiply packed matrices: "full", in `dtype`; "int8" or "fp8", rounded to 8 bits on
            both sides: less exact, for GPUs whose matrix units are faster in them (docs/performance.md). What decides
            which blocks are read, the head, chunks below 256 tokens and every token of an answer stay full.
        kv_budget: bytes on the device for K and V. They are then in host memory, and the device holds what was read of
            them last; a context may be as long as host memory and the compressed keys, which stay on the device, allow.
            None: all K and V are on the device, unless those of a million tokens do not fit under `gpu_memory`.
        gpu_memory: bytes of the GPU that the process may hold in all, CUDA's own part included; None: all that is
            free. It holds for everything that PyTorch does in this process from now on.
        kv: how K and V in host memory are kept: "full", in `dtype`; "int8" or "fp8", rounded to 8 bits: half the memory
            and half the bytes to move, and less exact (docs/performance.md).

    Raises:
        ModelNotFound, BadConfig, BadCheckpoint, BadTokenizer, UnsupportedFormat: the model cannot be used as it is.
        DoesNotFit: weights and kv_budget exceed the free memory or `gpu_memory`, or kv_budget has no room for one step;
            nothing was allocated.
        InvalidRequest: device, dtype, prefill or kv is not known or not there, prefill is in 8 bits and nothing packed,
            kv_budget is given for a model without sparse attention, `gpu_memory` for a processor, or kv in 8 bits where
            all K and V are on the device.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    _check_prefill(prefill, where)
    kv_tiers.check_kv(kv)
    path = find_model(path_or_name)
    if gpu_memory is not None and where.type != "cuda":
        raise InvalidRequest(f"gpu_memory is for a GPU, and {path.name} is to run on the processor: leave it out")
    config, source, tokenizer = _open(path)
    if prefill != "full" and config.quantization is None:
        raise InvalidRequest(
            f"{path.name}: prefill in {prefill} is for packed weights; make some with 'salalocal quantize'"
        )
    check_tensors(config, source)
    chunk = default_chunk(config, where)
    if prefill == "full":
        sizes, unpack = _choose_packing(config, kind, where, chunk)
    else:
        sizes, unpack = footprint(config, kind.itemsize, chunk), False
    if gpu_memory is not None:
        leanest = footprint(config, kind.itemsize, chunk, is_lean=True)
        cap_memory(where, gpu_memory, leanest.weight_bytes, path.name)
        if kv_budget is None:
            free = available_bytes(where)
            taken = kv_tiers.capped(config, kind.itemsize, free, is_narrow=prefill != "full", kv=kv)
            chunk, sizes, kv_budget = taken.chunk_tokens, taken.sizes, taken.kv_budget
    if kv != "full" and kv_budget is None:
        if where.type != "cuda":
            raise InvalidRequest(
                f"kv in {kv} is for K and V in main memory beside a GPU, and {path.name} is to run on the processor: "
                "leave it out"
            )
        raise InvalidRequest(
            f"kv in {kv} is for K and V in host memory, and here all of them are on the device: give kv_budget or a "
            "smaller gpu_memory, or leave kv out"
        )
    shares = None if kv_budget is None else kv_tiers.tiers(config, kind.itemsize, kv_budget, kv)
    _check_fits(path, config, kind, sizes, chunk, where, kv_budget)
    network = build_network(
        config, source, kind, where, unpack=unpack,
        feed_channels=sizes.feed_channels, has_host_table=sizes.has_host_table,
    )  # fmt: skip
    if prefill != "full":
        network = narrowed(network, prefill)
        if where.type != "cuda":
            _LOG.warning(
                "prefill in %s: a processor has no units for it and is several times slower than in 'full'", prefill
            )
    name = path.stem if path.is_file() else path.name
    look = 0 if path.is_file() else closer_look_tokens(path)
    tiers = None if shares is None else make_tiers(network, shares, kv)
    sizes = kv_tiers.with_kv(config, sizes, kv)
    return Engine(network, tokenizer, sizes, chunk, name, fingerprint(source.files), look, tiers, prefill)


def make_tiers(network: Network, shares: kv_tiers.Tiers, kv: str = "full") -> TieredStore:
    """Slots and buffers beside a network on its device, and host memory to come."""
    config = network.config
    if network.device.type == "cuda":
        _multiply(network)
    return TieredStore(
        len(config.sparse_layers),
        config.num_key_value_heads,
        config.sparse_head_dim,
        config.block_size,
        network.dtype,
        network.device,
        shares.slots,
        shares.staged_pages,
        kv=kv,
        strip_pages=shares.strip_pages,
    )


def _multiply(network: Network) -> None:
    """Takes the memory that products keep for good: taken by the first chunk, it would lie amidst what goes with it."""
    layer = network.layers[network.config.sparse_layers[0]]
    x = torch.zeros(MANY_TOKENS, network.config.hidden_size, dtype=network.dtype, device=network.device)
    with torch.inference_mode():
        for weight in layer.mixer.matrices:
            weight(x)
        layer.feed_forward(x)


def _check_prefill(prefill: str, device: torch.device) -> None:
    if prefill not in ("full", *NARROW_DTYPES):
        raise InvalidRequest(f"prefill is {prefill!r}; known are full, {', '.join(NARROW_DTYPES)}")
    lack = why_not(prefill, device) if prefill != "full" else ""
    if lack:
        raise InvalidRequest(f"prefill in {lack}; use 'full'")


def _open(path: Path) -> tuple[ModelConfig, WeightSource, Tokenizer | None]:
    if path.is_file():
        gguf = GgufSource(path)
        return gguf.config, gguf, Tokenizer.from_gguf(gguf.metadata)
    config = ModelConfig.from_json(path / "config.json")
    has_tokenizer = (path / "tokenizer.json").is_file()
    return config, SafetensorsSource(path), Tokenizer.from_folder(path) if has_tokenizer else None


def default_chunk(config: ModelConfig, device: torch.device) -> int:
    """Tokens per prefill chunk where a call names none."""
    return planner.default_chunk(config, on_gpu=device.type == "cuda")


def _choose_packing(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, chunk_tokens: int
) -> tuple[Footprint, bool]:
    """What the model takes on `device`, and whether its packed weights are unpacked when they are read."""
    return choose_packing(config, dtype.itemsize, chunk_tokens, available_bytes(device), on_gpu=device.type == "cuda")


def _check_fits(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    sizes: Footprint,
    chunk_tokens: int,
    device: torch.device,
    kv_budget: int | None,
) -> None:
    available = available_bytes(device)
    needed = sizes.total_bytes(0) + (0 if kv_budget is None else kv_budget + sizes.streaming_bytes)
    if needed > available:
        smaller = choices.mildest_packing(config, dtype.itemsize, chunk_tokens, available)
        raise DoesNotFit(
            f"{path.name}: needs {needed / 2**30:.1f} GiB of {device.type} memory and {available / 2**30:.1f} GiB are "
            "free; close other programs or "
            + ("take a smaller model" if smaller is None else f"pack it: 'salalocal quantize --format {smaller}' fits"),
            needed_bytes=needed,
            available_bytes=available,
        )
