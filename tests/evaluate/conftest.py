"""Golden cases made for the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))

from golden_case import MakeCase, Tensors, write_case


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> MakeCase:
    """make_case("sls", prompt=40, decode=3): a case's folder, and the case's tensors."""

    def make(mixers: str = "sls", prompt: int = 40, decode: int = 3) -> tuple[Path, Tensors]:
        return write_case(tmp_path_factory.mktemp("golden"), mixers, prompt, decode)

    return make
