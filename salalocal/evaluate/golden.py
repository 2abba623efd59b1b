"""Runs golden cases: exact expectations for prefill, decode, states and selected blocks of small models.

A case is a folder with `case.json` (model folder, prompt and decode lengths) and `io.safetensors` (input ids, and
logits, states, selected blocks with their margins, all computed in float64 from the same bf16 weights). A margin is
the relative change of scores that would alter the set; sets are only compared where it exceeds what the run's dtype
can resolve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from salalocal.engine.engine import Engine
from salalocal.engine.load import load
from salalocal.engine.session import Session
from salalocal.errors import BadCheckpoint, BadConfig, InvalidRequest
from salalocal.fields import Fields, read_json_object
from salalocal_kernels import watch

DtypeName = Literal["float32", "float64", "bfloat16"]


@dataclass(frozen=True)
class Limits:
    """What a run must reach: greatest |logit| and |state| difference, and the margin from which sets must agree.

    In bfloat16 the rounding of activations alone moves logits by tenths and sets by more than their margin, so such
    a run is held to `plain_ratio` times the errors of plain PyTorch in bfloat16 on the CPU instead.
    """

    logit: float
    state: float
    margin: float
    plain_ratio: float | None = None


LIMITS: dict[DtypeName, Limits] = {
    "float32": Limits(logit=1e-3, state=1e-3, margin=1e-5),
    "float64": Limits(logit=1e-5, state=1e-5, margin=1e-5),
    "bfloat16": Limits(logit=float("inf"), state=float("inf"), margin=2.0**-7, plain_ratio=2.0),
}


@dataclass(frozen=True)
class CaseResult:
    """One case at one chunk size.

    Attributes:
        case: its name.
        chunk_size: tokens per chunk, None for one-shot.
        prefill_error, decode_error: greatest |logit difference|.
        state_error: greatest |difference| of a linear state, after prefill and at the end.
        prefill_rms: root mean square of the prefill logit differences.
        changed_sets: block sets that differ, of `compared_sets`.
        changed_sets_within_margin: those of them whose margin the dtype should resolve; 0 is needed.
        argmax_mismatches: decode steps with another likeliest token.
        seconds: the run took.
        implementations: op -> the module that served it in this run.
        passed: every limit was kept.
        reason: the first limit that was not, else "".
    """

    case: str
    chunk_size: int | None
    prefill_error: float
    decode_error: float
    state_error: float
    prefill_rms: float
    changed_sets: int
    changed_sets_within_margin: int
    compared_sets: int
    argmax_mismatches: int
    seconds: float
    implementations: dict[str, str]
    passed: bool
    reason: str


def verify_cases(
    folder: Path,
    *,
    dtype: DtypeName = "float32",
    device: str = "cpu",
    chunk_sizes: Sequence[int | None] = (None,),
    names: Iterable[str] = (),
    on_case: Callable[[CaseResult], None] | None = None,
) -> list[CaseResult]:
    """Runs every case below `folder` at every chunk size.

    Args:
        folder: holds case folders, or is one.
        dtype, device: of the run.
        chunk_sizes: None is one-shot.
        names: only cases whose name contains one of these; all where empty.
        on_case: told each result as it comes.

    Raises:
        InvalidRequest: no case there. BadCheckpoint, BadConfig: a case or its model is damaged.
    """
    cases = sorted(path.parent for path in [*folder.glob("*/case.json"), *folder.glob("case.json")])
    wanted = list(names)
    cases = [case for case in cases if not wanted or any(name in case.name for name in wanted)]
    if not cases:
        raise InvalidRequest(f"{folder}: no folder with a case.json{' of that name' if wanted else ''} in it")
    results = []
    for path in cases:
        case = GoldenCase.read(path)
        for chunk_size in chunk_sizes:
            result = run_case(case, dtype=dtype, device=device, chunk_size=chunk_size)
            results.append(result)
            if on_case is not None:
                on_case(result)
    return results


@dataclass(frozen=True)
class GoldenCase:
    """A case as read from disk; `io` holds its tensors by name."""

    name: str
    model: Path
    prompt_len: int
    decode_len: int
    io: dict[str, Tensor]

    @staticmethod
    def read(folder: Path) -> GoldenCase:
        """Reads `folder`; raises BadConfig or BadCheckpoint naming the file."""
        path = folder / "case.json"
        values = read_json_object(path)
        fields = Fields(values, str(path))
        model = fields.raw("model")
        if not isinstance(model, str):
            raise BadConfig(f"{path}: field model must name the model's folder")
        try:
            tensors = load_file(folder / "io.safetensors")
        except (OSError, SafetensorError) as error:
            raise BadCheckpoint(f"{folder / 'io.safetensors'}: cannot be read ({error})") from error
        return GoldenCase(
            name=folder.name,
            model=(folder / model).resolve(),
            prompt_len=fields.integer("prompt_len", 1, 1 << 40),
            decode_len=fields.integer("decode_len", 0, 1 << 40),
            io=tensors,
        )

    def require(self, name: str, *shape: int | None) -> Tensor:
        """A tensor of `shape`, None for any size; raises BadCheckpoint naming it where it is not there or not such."""
        if name not in self.io:
            raise BadCheckpoint(f"case {self.name}: io.safetensors has no tensor {name!r}")
        found = tuple(self.io[name].shape)
        if len(found) != len(shape) or any(want not in (None, size) for want, size in zip(shape, found, strict=True)):
            raise BadCheckpoint(
                f"case {self.name}: tensor {name!r} has shape {list(found)}, which does not belong here"
            )
        return self.io[name]


def run_case(case: GoldenCase, *, dtype: DtypeName, device: str, chunk_size: int | None) -> CaseResult:
    """Runs one case and judges it by `LIMITS`; on a GPU every op that has a kernel must have run as one."""
    limits = LIMITS[dtype]
    engine = load(case.model, device=device, dtype=dtype)
    run = _Run(engine, case, limits.margin)
    with watch() as served:
        run.execute(chunk_size)
    if limits.plain_ratio is None:
        reason = run.judge(limits)
    elif device == "cpu":
        reason = run.judge_finite()
    else:
        plain = _Run(load(case.model, device="cpu", dtype=dtype), case, limits.margin)
        plain.execute(chunk_size)
        reason = run.judge_finite() or run.judge_against(plain, limits.plain_ratio)
    reason = reason or "; ".join(f"{op} ran as plain PyTorch: {why}" for op, why in served.fallbacks.items())
    return CaseResult(
        case=case.name,
        chunk_size=chunk_size,
        prefill_error=run.prefill_error,
        decode_error=run.decode_error,
        state_error=run.state_error,
        prefill_rms=run.prefill_rms,
        changed_sets=run.changed,
        changed_sets_within_margin=run.changed_within_margin,
        compared_sets=run.compared,
        argmax_mismatches=run.argmax_mismatches,
        seconds=run.seconds,
        implementations=served.modules,
        passed=not reason,
        reason=reason,
    )


class _Run:
    """One run of a case and what it found."""

    def __init__(self, engine: Engine, case: GoldenCase, margin: float) -> None:
        self._engine, self._case, self._margin = engine, case, margin
        self.prefill_error = self.decode_error = self.state_error = self.prefill_rms = 0.0
        self.changed = self.changed_within_margin = self.compared = self.argmax_mismatches = 0
        self.seconds = 0.0

    def execute(self, chunk_size: int | None) -> None:
        """Prefills the prompt, then feeds the given decode tokens one by one."""
        case, config = self._case, self._engine.config
        ids = case.require("input_ids", case.prompt_len + case.decode_len).tolist()
        positions = case.require("logits_pos", None).long()
        prefill_logits = case.require("prefill_logits", len(positions), config.vocab_size)
        if not bool(((positions >= 0) & (positions < case.prompt_len)).all()):
            raise BadCheckpoint(f"case {case.name}: logits_pos names positions outside the prompt")
        if case.decode_len:
            decode_logits = case.require("decode_logits", case.decode_len, config.vocab_size)
        started = perf_counter()
        session = self._engine.new_session(record_selection=True)
        logits = session.prefill(ids[: case.prompt_len], chunk_size=chunk_size or case.prompt_len, all_logits=True)
        difference = logits.double().cpu()[positions] - prefill_logits
        self.prefill_error = _greatest(difference)
        self.prefill_rms = float(difference.square().mean().sqrt())
        self._compare_states(session, "state_prefill")
        for layer in config.sparse_layers:
            self._compare_sets(session, layer, f"sel.layer{layer}", f"margin.layer{layer}", slice(None))
        for number, token in enumerate(ids[case.prompt_len :]):
            row = session.step(token).double().cpu()
            expected = decode_logits[number].double()
            self.decode_error = _worse(self.decode_error, _greatest(row - expected))
            self.argmax_mismatches += int(row.argmax() != expected.argmax())
            for layer in config.sparse_layers:
                at = slice(number, number + 1)
                self._compare_sets(session, layer, f"dsel.layer{layer}", f"dmargin.layer{layer}", at)
        if case.decode_len:
            self._compare_states(session, "state_final")
        self.seconds = perf_counter() - started

    def judge(self, limits: Limits) -> str:
        """The first limit that was not kept, "" where all were. NaN fails every comparison."""
        if not self.prefill_error < limits.logit:
            return f"prefill logits differ by {self.prefill_error:.2e}, allowed is {limits.logit:.0e}"
        if not self.decode_error < limits.logit:
            return f"decode logits differ by {self.decode_error:.2e}, allowed is {limits.logit:.0e}"
        if not self.state_error < limits.state:
            return f"states differ by {self.state_error:.2e}, allowed is {limits.state:.0e}"
        if self.changed_within_margin:
            return f"{self.changed_within_margin} block sets differ though their margin exceeds {limits.margin:.0e}"
        if self.argmax_mismatches:
            return f"{self.argmax_mismatches} decode steps have another likeliest token"
        return ""

    def judge_finite(self) -> str:
        """ "" where all errors are finite."""
        errors = (self.prefill_error, self.decode_error, self.state_error)
        return "" if all(map(isfinite, errors)) else "logits or states are not finite"

    def judge_against(self, plain: _Run, ratio: float) -> str:
        """Holds the errors to `ratio` times those of `plain`; two sets more, for cases so small that it has none."""
        if not self.prefill_rms <= ratio * plain.prefill_rms:
            return f"rms error {self.prefill_rms:.2e}, plain PyTorch on the CPU has {plain.prefill_rms:.2e}"
        if self.changed_within_margin > ratio * plain.changed_within_margin + 2:
            return (
                f"{self.changed_within_margin} block sets beyond their margin differ, plain PyTorch on the CPU has "
                f"{plain.changed_within_margin}"
            )
        return ""

    def _compare_states(self, session: Session, prefix: str) -> None:
        for layer in self._engine.config.lightning_layers:
            state = session.linear_state(layer).double().cpu()
            expected = self._case.require(f"{prefix}.layer{layer}", *state.shape).double()
            difference = (state - expected).abs()
            # Less what storing the expectation in float32 rounded away, which a float64 run would be blamed for.
            error = _greatest((difference - expected.abs() * 2.0**-24).clamp(min=0))
            self.state_error = _worse(self.state_error, error)

    def _compare_sets(self, session: Session, layer: int, sets: str, margins: str, rows: slice) -> None:
        """Compares the last call's sets with the bitmaps [Hkv, queries, bytes] of the case (all 0 where dense)."""
        if sets not in self._case.io:
            if session.selected_blocks(layer) is not None:
                raise BadCheckpoint(f"case {self._case.name}: the run selected blocks, but {sets!r} is missing")
            return
        config, case = self._engine.config, self._case
        queries = case.prompt_len if sets.startswith("sel.") else case.decode_len
        expected = case.require(sets, config.num_key_value_heads, queries, None)[:, rows]
        blocks = session.selected_blocks(layer)
        if blocks is not None and int(blocks.max()) >= 8 * expected.shape[-1]:
            raise BadCheckpoint(f"case {case.name}: {sets!r} is too narrow for block {int(blocks.max())}")
        found = torch.zeros_like(expected) if blocks is None else _bitmap(blocks.cpu(), expected.shape[-1])
        changed = (found != expected).any(-1)
        resolved = case.require(margins, config.num_key_value_heads, queries)[:, rows] > self._margin
        self.changed += int(changed.sum())
        self.changed_within_margin += int((changed & resolved).sum())
        self.compared += changed.numel()


def _greatest(difference: Tensor) -> float:
    """Largest absolute value; NaN where there is one (amax would do, but says so)."""
    return float(difference.abs().max()) if difference.numel() else 0.0


def _worse(one: float, other: float) -> float:
    """The larger error, NaN above all; `max` would drop a NaN that comes second."""
    return other if isnan(other) or other > one else one


def _bitmap(blocks: Tensor, width: int) -> Tensor:
    """int32 [Hkv, T, k], -1 padded -> uint8 [Hkv, T, width], little-endian bits."""
    member = torch.zeros(*blocks.shape[:2], width * 8 + 1, dtype=torch.uint8)
    member.scatter_(2, blocks.long() % (width * 8 + 1), 1)
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8)
    return (member[..., :-1].reshape(*blocks.shape[:2], width, 8) * weights).sum(-1).to(torch.uint8)
