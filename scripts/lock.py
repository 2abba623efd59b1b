"""Writes `requirements/lock.txt`: every package of the runtime and of the tests, with version and hashes.

One file serves Linux and Windows and every Python that salalocal supports: uv resolves for all of them at
once and writes markers where they differ. torch takes part in the resolution (pinned by
`requirements/torch.txt`) but is left out of the file together with what only its CUDA build needs, because
`scripts/setup_venv.py` chooses the build. triton stays, for the tests without a GPU; it is the release that the
CUDA build of that torch asks for. `make lock` changes only what must change; `make lock ARGS=--upgrade` takes the
newest releases.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "lock.txt"
UV = "uv==0.13.9"
BELONGS_TO_TORCH = re.compile(r"(torch|nvidia-[\w-]+|cuda-[\w-]+)==")
HEADER = "# Written by `make lock`; do not edit. Install with: pip install --no-deps --require-hashes -r\n"


def without_torch(requirements: str) -> str:
    """The requirements file less torch and its CUDA libraries; an entry is a line and its indented lines."""
    entries = re.split(r"^(?=\S)", requirements, flags=re.MULTILINE)
    return "".join(entry for entry in entries if not BELONGS_TO_TORCH.match(entry))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "Scripts/python.exe" if os.name == "nt" else "bin/python"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", UV], check=True)
        draft = Path(folder, "lock.txt")
        if LOCK.exists():  # uv keeps the versions it finds there, unless --upgrade is asked for
            shutil.copy(LOCK, draft)
        compile_all = [python, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
        options = ["--no-header", "--no-annotate", "--python-version", "3.11", "--extra", "dev"]
        files = ["--constraint", "requirements/torch.txt", "--output-file", str(draft), "pyproject.toml"]
        subprocess.run([*compile_all, *options, *files, *sys.argv[1:]], cwd=ROOT, check=True)
        LOCK.write_text(HEADER + without_torch(draft.read_text("utf-8")), "utf-8")
    print(f"lock: wrote {LOCK.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
