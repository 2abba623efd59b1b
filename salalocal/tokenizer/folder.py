"""Reads what a model folder says about its tokens: tokenizer.json and the small files beside it.

Knows file names and fields of Hugging Face folders; opens only these files and runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salalocal.errors import BadTokenizer

MAX_TOKENIZER_BYTES = 256 * 1024 * 1024
MAX_SMALL_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of the files; a missing one is {} or None. Only tokenizer.json must be there."""

    spec: Mapping[str, Any]
    bos_token: str | None
    eos_token: str | None
    eos_ids: frozenset[int]
    chat_template: str | None


def read_tokenizer_folder(folder: Path) -> TokenizerFiles:
    """The tokenizer files of `folder`. Raises `BadTokenizer` naming the file that is missing or damaged."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadTokenizer(f"{folder}: there is no tokenizer.json, so only token ids can be given")
    config = _optional_object(folder / "tokenizer_config.json")
    eos_ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        eos_ids |= _ids(_optional_object(folder / name).get("eos_token_id"), folder / name)
    return TokenizerFiles(
        spec=_object(path, MAX_TOKENIZER_BYTES),
        bos_token=_token(config.get("bos_token")),
        eos_token=_token(config.get("eos_token")),
        eos_ids=frozenset(eos_ids),
        chat_template=_chat_template(folder, config),
    )


def _read(path: Path, limit_bytes: int) -> str:
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            raise BadTokenizer(f"{path}: {size:,} bytes; at most {limit_bytes:,} are read")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadTokenizer(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise BadTokenizer(f"{path}: not UTF-8 text (byte {error.start})") from error


def _object(path: Path, limit_bytes: int) -> dict[str, Any]:
    text = _read(path, limit_bytes)
    try:
        value = json.loads(text)
    except RecursionError:
        raise BadTokenizer(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise BadTokenizer(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadTokenizer(f"{path}: holds no JSON object")
    return value


def _optional_object(path: Path) -> dict[str, Any]:
    return _object(path, MAX_SMALL_BYTES) if path.is_file() else {}


def _token(value: object) -> str | None:
    """A token given as text, or as {"content": text}."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _ids(value: object, path: Path) -> set[int]:
    if value is None:
        return set()
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in values):
        raise BadTokenizer(f"{path}: eos_token_id is {str(value)[:80]}; it must be an id or a list of ids")
    return set(values)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's chat_template (of several, the one named default)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read(path, MAX_SMALL_BYTES)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise BadTokenizer(f"{folder / 'tokenizer_config.json'}: chat_template is no text")
    return template
