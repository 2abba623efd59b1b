"""What is said about a model without loading it: the licence that a folder states."""

from __future__ import annotations

from pathlib import Path

import pytest

from salalocal.describe import _folder_license

CARDS = {
    "stated": ("---\nlanguage: en\nlicense: apache-2.0\ntags:\n- x\n---\n# Model", "apache-2.0"),
    "only in the prose": ("# Model\nlicense: mit\n", None),
    "front matter without one": ("---\nlanguage: en\n---\nlicense: mit\n---\n", "LICENSE.txt"),
    "front matter that never ends": ("---\n" + "license: \n" * 400, None),
}


@pytest.mark.parametrize(("card", "license_"), CARDS.values(), ids=CARDS.keys())
def test_licence_of_a_folder(card: str, license_: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    if license_ == "LICENSE.txt":
        (tmp_path / license_).write_text("words", encoding="utf-8")
    assert _folder_license(tmp_path) == license_


def test_a_licence_file_without_a_card(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("words", encoding="utf-8")
    assert _folder_license(tmp_path) == "LICENSE"
