"""Import arrows point down, no torch where nothing is computed, no web framework below the doors.

Reads the sources as text (AST) and imports none of them. Imports inside functions count like any other;
`importlib` and entry points are not seen, which is how the optional parts are reached on purpose. Each rule is
tried on a made-up tree that breaks it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SOURCE_ROOTS = {"salalocal": ".", "salalocal_kernels": "kernels", "salalocal_quant": "quant", "salalocal_ui": "ui"}
HEIGHT = {"salalocal_kernels": 0, "salalocal_quant": 1, "salalocal": 2, "salalocal_ui": 3}

DOORS = ("cli", "server", "__main__")
"""What a person or a program comes in by. Nothing below imports them."""

MAY_NOT_IMPORT = {
    "engine": DOORS,
    "model": (*DOORS, "engine"),
    "cache": (*DOORS, "engine", "model"),
    "weights": (*DOORS, "engine"),
    **dict.fromkeys(
        (
            "config",
            "errors",
            "documents",
            "evidence",
            "forecast",
            "hub",
            "machine",
            "planner",
            "kv_tiers",
            "choices",
            "plans",
            "times",
            "roofline",
            "cards",
            "saved_size",
            "bus_times",
            "tokenizer",
        ),
        (*DOORS, "engine", "model", "cache"),
    ),
}
"""Part of `salalocal` -> the parts above it. A part that is not named here still may not import a door."""

NO_TORCH = (
    "salalocal.byte_sizes",
    "salalocal.config",
    "salalocal.errors",
    "salalocal.evidence",
    "salalocal.documents",
    "salalocal.hub",
    "salalocal.forecast",
    "salalocal.machine",
    "salalocal.planner",
    "salalocal.kv_tiers",
    "salalocal.choices",
    "salalocal.times",
    "salalocal.roofline",
    "salalocal.cards",
    "salalocal.saved_size",
    "salalocal.bus_times",
    "salalocal.tokenizer",
    "salalocal.cache.manifest",
    "salalocal.cache.page_table",
    "salalocal.engine.schedule",
)
"""These decide without computing: they and everything they import stay free of torch."""

WEB = ("gradio", "fastapi", "starlette", "uvicorn", "flask", "aiohttp", "tornado", "django")
WEB_PLACES = ("salalocal_ui", "salalocal.server")

OPTIONAL = ("llama_cpp", "triton", "fla", "bitsandbytes", "pynvml")
"""Packages that may be missing: the only foreign ones that a module may import in a function without naming
them at its top ..."""

LATE_PLACES = (*WEB_PLACES, "salalocal.cli")
"""... but for the doors, which must answer `--help` at once and so import heavy packages when they need them."""


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is absolute; `typing_only` means that it is never executed."""

    importer: str
    module: str
    line: int
    typing_only: bool
    in_function: bool


@dataclass(frozen=True)
class Tree:
    """All modules of the four packages below a folder, and what each of them imports."""

    files: dict[str, Path]
    imports: tuple[Import, ...]

    def resolve(self, name: str) -> str | None:
        """The module of ours that an imported dotted name belongs to (`a.b.function` -> `a.b`)."""
        while name and name not in self.files:
            name = name.rpartition(".")[0]
        return name or None

    def declared(self, module: str) -> set[str]:
        """The packages that a module names at its top, where a reader looks for what it needs."""
        edges = (edge for edge in self.imports if edge.importer == module and not edge.in_function)
        return {edge.module.split(".")[0] for edge in edges}

    def reached_from(self, module: str) -> set[str]:
        """The modules, ours and foreign, executed when `module` is; ours with the packages around them.

        The package `salalocal` itself is left out: a runtime test below holds that it imports lazily.
        """
        found: set[str] = set()
        waiting = [module]
        while waiting:
            name = waiting.pop()
            ours = self.resolve(name)
            if ours is None:
                found.add(name)
            elif ours not in found:
                found.add(ours)
                waiting += [edge.module for edge in self.imports if edge.importer == ours and not edge.typing_only]
                package = ours.rpartition(".")[0]
                waiting += [package] if package and package != "salalocal" else []
        return found


def read_tree(root: Path) -> Tree:
    files = {}
    for package, source_root in SOURCE_ROOTS.items():
        for path in sorted((root / source_root / package).rglob("*.py")):
            parts = path.relative_to(root / source_root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    imports = [edge for module, path in files.items() for edge in read_imports(module, path)]
    return Tree(files, tuple(imports))


def read_imports(module: str, path: Path) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, typing_only: bool, in_function: bool) -> Iterator[Import]:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            yield Import(module, name, node.lineno, typing_only, in_function)  # type: ignore[attr-defined]
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                yield from visit(child, True, in_function)
            children: list[ast.AST] = list(node.orelse)
        else:
            children = list(ast.iter_child_nodes(node))
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in children:
            yield from visit(child, typing_only, inside)

    yield from visit(ast.parse(path.read_text("utf-8"), str(path)), False, False)


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def is_within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def violations(root: Path) -> list[str]:
    """One line for every import that points the wrong way; empty when the house is in order."""
    tree = read_tree(root)
    problems = [problem for edge in tree.imports for problem in wrong_arrows(tree, edge)]
    for module in NO_TORCH:
        if module in tree.files and any(is_within(name, ("torch",)) for name in tree.reached_from(module)):
            problems.append(f"{module}: reaches torch")
    problems += [f"{' -> '.join(cycle)}: cycle" for cycle in cycles(tree)]
    for folder in ("kernels", "quant", "ui", "packaging"):
        if (root / folder / "__init__.py").exists():
            problems.append(f"{folder}/__init__.py: would shadow an installed package of that name")
    return problems


def wrong_arrows(tree: Tree, edge: Import) -> Iterator[str]:
    where = f"{edge.importer}:{edge.line} imports {edge.module}"
    source, target = edge.importer.split(".")[0], edge.module.split(".")[0]
    if is_within(edge.module, WEB) and not is_within(edge.importer, WEB_PLACES):
        yield f"{where}: web framework"
    if target not in HEIGHT:
        foreign = target not in sys.stdlib_module_names and target not in OPTIONAL
        hidden = edge.in_function and target not in tree.declared(edge.importer)
        if hidden and foreign and not is_within(edge.importer, LATE_PLACES):
            yield f"{where}: inside a function, but not optional"
        return
    if HEIGHT[target] > HEIGHT[source]:
        yield f"{where}: upwards"
    ours = tree.resolve(edge.module) or target
    if source == "salalocal_ui" and target == "salalocal" and ours not in ("salalocal", "salalocal.errors"):
        yield f"{where}: the ui uses public names only"
    elif source == target == "salalocal":
        mine, theirs = part_of(edge.importer), part_of(ours)
        if mine and mine not in DOORS and mine != theirs and theirs in MAY_NOT_IMPORT.get(mine, DOORS):
            yield f"{where}: upwards"


def cycles(tree: Tree) -> Iterator[list[str]]:
    """Rings of modules that import each other when executed; each ring once, from its first name on."""
    arrows: dict[str, set[str]] = {module: set() for module in tree.files}
    for edge in tree.imports:
        ours = tree.resolve(edge.module)
        if ours and ours != edge.importer and not edge.typing_only:
            arrows[edge.importer].add(ours)
    done: set[str] = set()
    for start in sorted(arrows):
        if start in done:
            continue
        ring = _ring_through(start, arrows)
        if ring:
            done.update(ring)
            yield [*ring, start]


def _ring_through(start: str, arrows: dict[str, set[str]]) -> list[str]:
    paths = [[start]]
    seen = {start}
    while paths:
        path = paths.pop(0)
        for following in sorted(arrows[path[-1]]):
            if following == start:
                return path
            if following not in seen:
                seen.add(following)
                paths.append([*path, following])
    return []


def test_import_arrows_point_down() -> None:
    assert violations(ROOT) == []


def test_every_package_is_seen() -> None:
    seen = {module.split(".")[0] for module in read_tree(ROOT).files}
    assert seen == set(SOURCE_ROOTS)


@pytest.mark.parametrize("module", NO_TORCH)
def test_deciding_without_computing_starts_without_torch(module: str) -> None:
    if module not in read_tree(ROOT).files:
        pytest.skip("not built yet")
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=False).returncode == 0


BREAKS = {
    "kernels know salalocal": ("kernels/salalocal_kernels/ref.py", "import salalocal.config", "upwards"),
    "quant knows salalocal": ("quant/salalocal_quant/x.py", "from salalocal import errors", "upwards"),
    "runtime imports the ui": ("salalocal/documents.py", "import salalocal_ui", "upwards"),
    "model imports engine": ("salalocal/model/x.py", "from salalocal.engine import run", "upwards"),
    "relative import upwards": ("salalocal/cache/x.py", "from ..engine import run", "upwards"),
    "unnamed part imports a door": ("salalocal/verify.py", "from salalocal.cli import main", "upwards"),
    "arrow inside a function": ("salalocal/model/x.py", "def f():\n    import salalocal.engine", "upwards"),
    "arrow for types only": (
        "salalocal/model/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import salalocal.engine",
        "upwards",
    ),
    "planner imports torch": ("salalocal/planner.py", "import torch.nn", "salalocal.planner: reaches torch"),
    "planner reaches torch": ("salalocal/planner.py", "import salalocal_kernels", "reaches torch"),
    "web framework below": ("salalocal/engine/x.py", "from fastapi import FastAPI", "web framework"),
    "ui looks inside": ("ui/salalocal_ui/x.py", "from salalocal.engine import run", "public names only"),
    "hidden third party": ("salalocal/config.py", "def f():\n    import numpy", "not optional"),
    "cycle": ("salalocal/config.py", "import salalocal.fields", "cycle"),
    "shadowing package": ("kernels/__init__.py", "", "shadow"),
}


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    sources = {
        "kernels/salalocal_kernels/__init__.py": "import torch",
        "quant/salalocal_quant/__init__.py": "import salalocal_kernels",
        "salalocal/__init__.py": "",
        "salalocal/cli.py": "import salalocal\nfrom salalocal import engine",
        "salalocal/config.py": "import json",
        "salalocal/fields.py": "import salalocal.config",
        "salalocal/errors.py": "",
        "salalocal/engine/__init__.py": "from salalocal.model import net\nrun = net",
        "salalocal/model/__init__.py": "import torch\nfrom salalocal_quant import unpack\nnet = 1",
        "salalocal/server/__init__.py": "def serve():\n    import fastapi",
        "salalocal/weights.py": "import numpy\n\ndef read():\n    import numpy.lib\n    import triton",
        "ui/salalocal_ui/__init__.py": "import gradio\nimport salalocal\nfrom salalocal import load",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_house_in_order_passes(small_house: Path) -> None:
    assert violations(small_house) == []


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS.keys())
def test_each_rule_catches_its_breach(small_house: Path, broken: tuple[str, str, str]) -> None:
    name, text, expected = broken
    (small_house / name).parent.mkdir(exist_ok=True)
    (small_house / name).write_text(text)
    found = violations(small_house)
    assert any(expected in problem for problem in found), found
