"""The scripts behind `make`: which torch the set-up asks for, what the lock leaves out, the demo document."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pypdfium2
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PINNED = re.search(r"^torch==\S+$", (ROOT / "requirements" / "torch.txt").read_text("utf-8"), re.MULTILINE)


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))


@pytest.fixture
def torch_choices(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("SALALOCAL_TORCH", raising=False)
    return script("setup_venv")["torch_choices"]


def test_without_a_gpu_the_cpu_index_comes_first(torch_choices: Any) -> None:
    assert PINNED
    first, second, last = torch_choices(gpu=False, cpu_index_answers=True)
    assert first == [PINNED[0], "--index-url", "https://download.pytorch.org/whl/cpu"]
    assert second == [PINNED[0]]
    assert last == ["torch>=2.7"]


def test_where_the_cpu_index_is_out_of_reach_the_pinned_release_comes_first(torch_choices: Any) -> None:
    assert PINNED
    assert torch_choices(gpu=False, cpu_index_answers=False) == [[PINNED[0]], ["torch>=2.7"]]


def test_with_a_gpu_the_cpu_index_is_never_asked(torch_choices: Any) -> None:
    assert not any("--index-url" in choice for choice in torch_choices(gpu=True, cpu_index_answers=True))


def test_the_user_may_choose_torch(torch_choices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALALOCAL_TORCH", "torch==2.9.1 --index-url https://example.org/simple")
    for gpu in (False, True):
        choices = torch_choices(gpu=gpu, cpu_index_answers=True)
        assert choices == [["torch==2.9.1", "--index-url", "https://example.org/simple"]]


def test_lock_leaves_out_torch_and_only_what_its_cuda_build_needs() -> None:
    kept, dropped = "tokenizers==1 \\\n    --hash=sha256:aa\n", "    --hash=sha256:bb \\\n    --hash=sha256:cc\n"
    requirements = "".join(
        f"{name}==1 ; sys_platform == 'linux' \\\n{dropped}" for name in ("cuda-bindings", "nvidia-cudnn-cu13", "torch")
    )
    assert script("lock")["without_torch"](requirements + kept + requirements) == kept


def test_every_locked_package_has_a_hash_and_torch_is_not_among_them() -> None:
    entries = re.split(r"^(?=[a-z])", (ROOT / "requirements" / "lock.txt").read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert len(entries) > 50
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not any(re.match(r"(torch|nvidia|cuda)\b", entry) for entry in entries)
    (triton,) = (entry for entry in entries if entry.startswith("triton=="))
    assert re.search(r" ; .*sys_platform == 'linux'", triton.splitlines()[0]), "it is there for Linux alone"


def test_demo_document_is_two_pages_and_says_what_its_source_says() -> None:
    demo = script("demo_pdf")
    source = demo["SOURCE"].read_text("utf-8")
    assert demo["TARGET"].read_bytes() == demo["pdf"](demo["pages"](source)), "run scripts/demo_pdf.py"
    document = pypdfium2.PdfDocument(demo["TARGET"])
    texts = [page.get_textpage().get_text_bounded() for page in document]
    assert len(texts) == 2
    assert " ".join(" ".join(texts).split()) == " ".join(re.sub(r"^#+ |\*", "", source, flags=re.MULTILINE).split())


def test_a_program_beside_the_clone_finds_the_package(tmp_path: Path) -> None:
    if not (Path(sys.prefix) / ".ready").exists():
        pytest.skip("this environment was not made by `make setup`")
    (tmp_path / "salalocal").mkdir()  # as the clone lies in its parent folder
    code = "import salalocal; print(salalocal.load.__name__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "load", run.stderr
