"""What bfloat16 inputs of matrix products alone do to the golden cases, everything else being float64.

Shows the bound for any implementation that multiplies in bfloat16: the activations that enter a linear layer are
rounded to bfloat16, and nothing else is. Usage: python scripts/bfloat16_bound.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import salalocal_quant.dense
from salalocal.evaluate import golden
from salalocal_kernels import linear


def rounded_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`linear` with its input rounded to bfloat16."""
    return linear(x.bfloat16().to(x.dtype), weight)


def main() -> None:
    """Prints rms error and changed block sets per case."""
    salalocal_quant.dense.linear = rounded_linear  # type: ignore[assignment, attr-defined]
    golden.LIMITS["float64"] = golden.LIMITS["bfloat16"]
    torch.set_num_threads(2)
    for result in golden.verify_cases(Path(sys.argv[1]), dtype="float64"):
        print(
            f"{result.case}: rms {result.prefill_rms:.2e}, {result.changed_sets} of {result.compared_sets} sets differ,"
            f" {result.changed_sets_within_margin} of them with a margin above 2^-7"
        )


if __name__ == "__main__":
    main()
