"""The wheel works away from the checkout: built, installed into a fresh environment, started from elsewhere.

Nothing is downloaded: the build uses the setuptools that is here, and the fresh environment sees the
dependencies of this one through a `.pth` file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "salalocal": ROOT / "salalocal",
    "salalocal_kernels": ROOT / "kernels" / "salalocal_kernels",
    "salalocal_quant": ROOT / "quant" / "salalocal_quant",
    "salalocal_ui": ROOT / "ui" / "salalocal_ui",
}
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc")


def run(*command: object, cwd: Path, **environment: str) -> str:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=bare | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy, so that neither an old build/ of the checkout gets in nor a new one is left behind.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("salalocal", "kernels", "quant", "ui"):
        shutil.copytree(ROOT / name, source / name, ignore=LEFT_BEHIND)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", out)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with nothing but the wheel; returns the folder of its commands."""
    folder = tmp_path_factory.mktemp("fresh environment")
    venv.create(folder, with_pip=False)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        commands / "python",
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    target = run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # A folder named in a .pth file is searched, but its own .pth files are not followed: the editable install of
    # the checkout, which is one, stays out of sight.
    Path(target.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    return commands


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - inside == set()
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside


def test_wheel_brings_no_generic_name(wheel: Path) -> None:
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    info = {name for name in top if re.fullmatch(r"salalocal-[\w.]+\.dist-info", name)}
    assert len(info) == 1
    assert top - info == set(PACKAGES)


def test_wheel_carries_its_licence_and_its_door_to_the_ui(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        (entry_points,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        assert b"Apache License" in archive.read(licence)
        assert b"[salalocal.ui]" in archive.read(entry_points)


def test_command_runs_outside_the_checkout(elsewhere: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert version in run(elsewhere / "salalocal", "--version", cwd=tmp_path)
    listed = json.loads(run(elsewhere / "salalocal", "list", "--json", cwd=tmp_path, SALALOCAL_HOME=str(tmp_path)))
    assert isinstance(listed, (list, dict))


def test_all_packages_come_from_the_wheel(elsewhere: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u, sys; [print(u.find_spec(name).origin) for name in sys.argv[1:]]"
    origins = run(elsewhere / "python", "-c", code, *PACKAGES, cwd=tmp_path).split("\n")[:-1]
    assert len(origins) == len(PACKAGES)
    assert all(Path(origin).is_relative_to(elsewhere.parent) for origin in origins)


def test_ui_is_found_through_its_entry_point(elsewhere: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.metadata import entry_points as e\n"
        "found = {point.load().__module__.split('.')[0] for point in e(group='salalocal.ui')}; print(*found)"
    )
    home = str(tmp_path)
    assert run(elsewhere / "python", "-c", code, cwd=tmp_path, SALALOCAL_HOME=home).strip() == "salalocal_ui"
