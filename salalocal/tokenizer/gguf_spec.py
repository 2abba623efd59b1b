"""Turns the tokenizer in a GGUF file's metadata into the layout of tokenizer.json.

Knows llama.cpp's tokenizer keys and which pre-tokenizers its names stand for (source: llama.cpp,
src/llama-vocab.cpp). Only byte-level BPE ("gpt2") is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from salalocal.errors import BadTokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4  # token types that matter here

_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {**_GPT2, "use_regex": False},
        ],
    }


_DIGITS_THEN_GPT2 = {"type": "Sequence", "pretokenizers": [_DIGITS, _GPT2]}
# llama.cpp's name -> (pre-tokenizer, whether a word that is a token skips the merges)
_PRE_TOKENIZERS: dict[str, tuple[dict[str, Any], bool]] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo"), (_GPT2, False)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), (_DIGITS_THEN_GPT2, False)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), (_split(_LLAMA3), True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (_split(_QWEN2), False)),
}


def spec_from_gguf(metadata: Mapping[str, object]) -> dict[str, Any]:
    """The tokenizer.json that says what `metadata` says.

    Raises `BadTokenizer` naming the key that is missing or damaged, or the tokenizer that is not read.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise BadTokenizer(f"tokenizer.ggml.model is {model!r}; of GGUF files only byte-level BPE ('gpt2') is read")
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
        raise BadTokenizer(
            f"tokenizer.ggml.pre is {pre!r}; the pre-tokenizers that are read: {', '.join(_PRE_TOKENIZERS)}"
        )
    pre_tokenizer, ignore_merges = _PRE_TOKENIZERS[pre]
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    merges = _strings(metadata, "tokenizer.ggml.merges")
    types = _types(metadata, len(tokens))
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise BadTokenizer("tokenizer.ggml.tokens lists a token twice")
    pairs = [merge.split(" ") for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or not all(part in vocab for part in (*pair, "".join(pair))):
            raise BadTokenizer(f"tokenizer.ggml.merges: {' '.join(pair)[:80]!r} does not merge two tokens")
    return {
        "version": "1.0",
        "added_tokens": [_added(token, index, types[index]) for token, index in vocab.items() if types[index]],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": _GPT2,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": pairs,
            "ignore_merges": ignore_merges,
            "byte_fallback": False,
            "fuse_unk": False,
        },
    }


def token_id(metadata: Mapping[str, object], name: str, n_tokens: int) -> int | None:
    """`tokenizer.ggml.<name>_token_id`, or None where it is not set. Raises `BadTokenizer` out of range."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n_tokens:
        raise BadTokenizer(f"{key} is {value!r}; there are {n_tokens} tokens")
    return value


def _strings(metadata: Mapping[str, object], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise BadTokenizer(f"{key} is missing or no list of texts")
    return value


def _types(metadata: Mapping[str, object], n_tokens: int) -> list[int]:
    """Per token 0, or the type of an added token."""
    types = metadata.get("tokenizer.ggml.token_type", [_NORMAL] * n_tokens)
    if not isinstance(types, list) or len(types) != n_tokens:
        raise BadTokenizer(f"tokenizer.ggml.token_type does not give a type for each of {n_tokens} tokens")
    return [kind if kind in (_UNKNOWN, _CONTROL, _USER) else 0 for kind in types]


def _added(token: str, index: int, kind: int) -> dict[str, Any]:
    return {
        "id": index,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": kind != _USER,
    }
