"""Runs the sparse attention kernel over all cases in Triton's interpreter: `python interpret.py OUT.pt`.

A program of its own, because Triton decides whether it interprets when it is imported. Fresh memory holds NaN, so
that an element the kernel leaves out is found.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from sparse_cases import CASES, NAN
from torch import Tensor

from salalocal_kernels.gpu.sparse_attention import sparse_attention_prefill

_empty_like = torch.empty_like


def poisoned_empty_like(x: Tensor, **options: object) -> Tensor:
    return _empty_like(x, **options).fill_(NAN)


def main() -> None:
    torch.set_num_threads(1)
    torch.empty_like = poisoned_empty_like
    found = {str(case): sparse_attention_prefill(*case.inputs(NAN), case.first, case.scale) for case in CASES}
    torch.save(found, sys.argv[1])


if __name__ == "__main__":
    main()
