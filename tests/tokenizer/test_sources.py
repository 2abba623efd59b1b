"""Where tokenizers come from: model folders and GGUF metadata, sound and damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from salalocal.errors import BadTokenizer
from salalocal.tokenizer import Message, Tokenizer

WriteFolder = Callable[..., Path]
Specs = dict[str, Callable[[], dict[str, Any]]]


def test_folder_files_are_taken_together(write_folder: WriteFolder, specs: Specs) -> None:
    spec = specs["byte-level"]()
    end = next(entry["id"] for entry in spec["added_tokens"] if entry["content"] == "<|im_end|>")
    folder = write_folder(
        spec,
        tokenizer_config={"eos_token": {"content": "<|im_end|>"}, "chat_template": "from the config"},
        generation_config={"eos_token_id": [3, end]},
        config={"eos_token_id": 4},
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_ids == {3, 4, end}
    assert tokenizer.chat_template == "from the config"
    assert tokenizer.vocab_size == 1 + max(entry["id"] for entry in spec["added_tokens"])
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}!")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.decode(tokenizer.encode_prompt([Message("user", "hi")]).ids) == "hi!"


def test_the_default_of_several_templates(write_folder: WriteFolder, specs: Specs) -> None:
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    folder = write_folder(specs["byte-level"](), tokenizer_config={"chat_template": templates})
    assert Tokenizer.from_folder(folder).chat_template == "yes"


def test_a_template_encodes_its_own_words_as_the_model_was_trained(write_folder: WriteFolder, specs: Specs) -> None:
    """The dummy space of a byte-fallback model stands after markers, and never inside or before contents."""
    template = "{% for m in messages %}<s>the{{ m.content }}the</s>{% endfor %}"
    folder = write_folder(specs["byte-fallback"](), tokenizer_config={"chat_template": template})
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode_prompt([Message("user", "the")]).ids
    assert [tokenizer.decode([index], with_special=True) for index in ids] == (
        ["<s>", " the", "t", "he", "t", "he", "</s>"]
    )


def test_no_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(BadTokenizer, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 200_000, b'{"model": 3}'])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadTokenizer, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def set_in(spec: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, last = path.split(".")
    part: Any = spec
    for name in parents:
        part = part[int(name)] if name.isdecimal() else part[name]
    part[int(last) if last.isdecimal() else last] = value
    return spec


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.type", "WordPiece", "only BPE"),
        ("model.vocab", None, r"model\.vocab"),
        ("model.vocab.the", -1, "the id of 'the'"),
        ("model.vocab.the", 1 << 40, "the id of 'the'"),
        ("model.vocab.the", True, "the id of 'the'"),
        ("model.vocab.the", 0, "same id"),
        ("model.merges", None, r"model\.merges"),
        ("model.merges", [["no", "such"]], "not a usable tokenizer"),
        ("model.merges", [7], "not a usable tokenizer"),
        ("model.end_of_word_suffix", "</w>", "end_of_word_suffix"),
        ("added_tokens", {}, "added_tokens"),
        ("added_tokens.0", 3, "added_tokens"),
        ("added_tokens.0.content", "", "no content"),
        ("added_tokens.0.id", "7", "the id of"),
        ("added_tokens.0.content", "<|im_end|>", "there twice"),
        ("added_tokens.2.id", 9999, "'stop' has the ids"),
        ("pre_tokenizer.type", "Nonsense", "the step 'Nonsense' is not read"),
        ("pre_tokenizer", {"type": "Whitespace"}, "the step 'Whitespace' is not read"),
        ("pre_tokenizer", {"type": "Split", "behavior": "Removed"}, "removes text"),
        ("pre_tokenizer.use_regex", "perhaps", "not a usable tokenizer"),
        ("pre_tokenizer", {"type": "Sequence"}, "without its list"),
        ("pre_tokenizer", None, "neither byte-level"),  # a byte-level decoder alone does not make it so
        ("normalizer", {"type": "Lowercase"}, "the step 'Lowercase' is not read"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "'Precompiled' is not read"),
        ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": ""}, "a Replace of anything"),
        ("normalizer", [], "the step 'None' is not read"),
    ],
)
def test_damaged_specs_are_refused(
    write_folder: WriteFolder, specs: Specs, path: str, value: object, message: str
) -> None:
    folder = write_folder(set_in(specs["byte-level"](), path, value))
    with pytest.raises(BadTokenizer, match=message):
        Tokenizer.from_folder(folder)


def test_a_vocabulary_that_cannot_spell_every_text(write_folder: WriteFolder, specs: Specs) -> None:
    spec = set_in(specs["byte-fallback"](), "model.byte_fallback", False)
    with pytest.raises(BadTokenizer, match="neither byte-level nor with byte fallback"):
        Tokenizer.from_folder(write_folder(spec))


@pytest.mark.parametrize("value", ["2", -1, [2, None], 1.5, True])
def test_damaged_end_ids(write_folder: WriteFolder, specs: Specs, value: object) -> None:
    folder = write_folder(specs["byte-level"](), generation_config={"eos_token_id": value})
    with pytest.raises(BadTokenizer, match=r"generation_config\.json: eos_token_id"):
        Tokenizer.from_folder(folder)


def test_end_id_beyond_the_vocabulary(write_folder: WriteFolder, specs: Specs) -> None:
    folder = write_folder(specs["byte-level"](), generation_config={"eos_token_id": 100_000})
    with pytest.raises(BadTokenizer, match="100000 is beyond"):
        Tokenizer.from_folder(folder)


def test_gguf(demo: Tokenizer) -> None:
    assert demo.vocab_size == 49152
    assert demo.eos_ids == {2}
    assert demo.special_ids == set(range(17))
    assert "<|im_start|>" in (demo.chat_template or "")


# Ids of llama.cpp (llama-cpp-python 0.3.36, special=False) on the demo model's file.
LLAMA_CPP_IDS = {
    "Hello world": [19556, 905],
    "x = 12345;": [104, 446, 216, 33, 34, 35, 36, 37, 43],
    "<|im_end|>": [44, 108, 306, 79, 486, 108, 46],
    "  two  spaces\n\n\nand lines ": [216, 827, 216, 5600, 1116, 198, 397, 3204, 216],
    "don't 中文 🙂": [12420, 982, 216, 28589, 29184, 47526],
}


@pytest.mark.parametrize("text", LLAMA_CPP_IDS)
def test_ids_are_those_of_llama_cpp(demo: Tokenizer, text: str) -> None:
    assert demo.encode_text(text) == LLAMA_CPP_IDS[text]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "llama", "'llama'; of GGUF files only"),
        ("tokenizer.ggml.model", None, "None; of GGUF files only"),
        ("tokenizer.ggml.pre", "tekken", "'tekken'; the pre-tokenizers that are read: gpt-2"),
        ("tokenizer.ggml.pre", None, "pre-tokenizers that are read"),
        ("tokenizer.ggml.tokens", None, r"ggml\.tokens"),
        ("tokenizer.ggml.tokens", ["a", 1], r"ggml\.tokens"),
        ("tokenizer.ggml.tokens", ["a", "a"], r"token_type does not give|twice"),
        ("tokenizer.ggml.token_type", [1], "token_type"),
        ("tokenizer.ggml.merges", ["a b c"], "'a b c' does not merge"),
        ("tokenizer.ggml.merges", ["qqqq zzzz"], "'qqqq zzzz' does not merge"),
        ("tokenizer.ggml.eos_token_id", 49152, "eos_token_id is 49152"),
        ("tokenizer.ggml.bos_token_id", -1, "bos_token_id is -1"),
        ("tokenizer.chat_template", 5, "chat_template"),
    ],
)
def test_damaged_metadata_is_named(metadata: dict[str, object], key: str, value: object, message: str) -> None:
    with pytest.raises(BadTokenizer, match=message):
        Tokenizer.from_gguf({**metadata, key: value})


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "command-r"])
def test_every_kind_of_pre_tokenizer_loads(metadata: dict[str, object], pre: str) -> None:
    tokenizer = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.pre": pre})
    text = "In 1234567 it's\n\n fine 中文"
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode(ids) == text
    digits = [tokenizer.decode([index]) for index in ids if tokenizer.decode([index]).strip().isdigit()]
    widest = {"gpt-2": 7, "llama-bpe": 3, "qwen2": 1, "command-r": 1}[pre]
    assert max(map(len, digits)) <= widest
