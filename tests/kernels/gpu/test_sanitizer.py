"""The kernels' GPU tests at small sizes once more, with every access to device memory checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer of the CUDA toolkit"),
]

HERE = Path(__file__).parent
KERNELS = (
    "append_token", "compress_keys", "gather_rows", "kv_codes", "lightning_decode", "lightning_prefill", "norm_gate",
    "qk_norm_rope", "random_uniform", "rms_norm", "select_blocks", "unpack_planes",
)  # fmt: skip
# What a graph records is not recorded where every tensor has its own memory.
LARGE = ("graph", "2_to_31", "8192", "2049", "32768", "16384", "73448", "65536")


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_access_is_out_of_bounds(kernel: str) -> None:
    # Of PyTorch's pool every tensor is a part; by itself each has bounds that can be checked.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    small = " and ".join(f"not {size}" for size in LARGE)
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", "pytest"]
    command += ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-k", small, str(HERE / f"test_{kernel}.py")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    assert "ERROR SUMMARY: 0 errors" in ran.stdout
