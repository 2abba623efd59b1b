"""Builds the two `tokenizers` objects of a model from its tokenizer.json, as a dict that nobody vouches for.

Knows the layout of tokenizer.json. One object encodes text of people and documents: no added token, no
dummy prefix, nothing put before or after. The other encodes a chat template's own words, with the added
tokens, as the model was trained. Only BPE that can spell any byte is taken: byte-level or byte fallback.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Encoder

from salalocal.errors import BadTokenizer
from salalocal.tokenizer.byte_tokens import SPACE_MARK, missing_bytes, token_bytes

MAX_TOKEN_ID = 1 << 22
# Steps that leave no text out. Others drop white space, accents or more, and some crash on damaged files.
_NORMALIZERS = ("Sequence", "Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD")
_PRE_TOKENIZERS = ("Sequence", "ByteLevel", "Metaspace", "Split", "Digits", "Punctuation")


@dataclass(frozen=True)
class Backend:
    """What `Tokenizer` works with.

    `text_encoder` and `template_encoder` are described above. `token_bytes[id]` are the bytes of an id.
    `special_ids` are the ids that text never yields; `skipped_ids`, those of them that decoding leaves out.
    `added` maps the content of every added token to its id. `missing` are bytes without a token.
    """

    text_encoder: Encoder
    template_encoder: Encoder
    token_bytes: list[bytes]
    special_ids: frozenset[int]
    skipped_ids: frozenset[int]
    added: Mapping[str, int]
    missing: frozenset[int]
    byte_level: bool


def build_backend(spec: Mapping[str, Any], where: str) -> Backend:
    """The backend of the tokenizer.json `spec`; `where` is what errors name.

    Raises `BadTokenizer` for anything that is not a sound BPE tokenizer able to spell every byte.
    """
    _check_steps(spec.get("normalizer"), "normalizers", _NORMALIZERS, where)
    _check_steps(spec.get("pre_tokenizer"), "pretokenizers", _PRE_TOKENIZERS, where)
    model = _mapping(spec.get("model"), where, "model")
    vocab = _checked_vocab(model, where)
    added, flagged = _checked_added(spec.get("added_tokens", []), where)
    for content, index in added.items():
        if vocab.get(content, index) != index:
            raise BadTokenizer(f"{where}: added token {content!r} has the ids {index} and {vocab[content]}")
    byte_level = _maps_bytes(spec.get("pre_tokenizer"))
    if not byte_level and model.get("byte_fallback") is not True:
        raise BadTokenizer(
            f"{where}: neither byte-level nor with byte fallback, so there is text that it cannot encode"
        )
    # An unflagged added token of nothing but white space is text by nature and cannot be mistaken.
    special = frozenset(index for text, index in added.items() if index in flagged or text.strip())
    text_spec = _text_spec(spec, special, byte_level)
    text_vocab = text_spec["model"]["vocab"]
    return Backend(
        text_encoder=_encoder(text_spec, where),
        template_encoder=_encoder(_template_spec(spec), where),
        token_bytes=token_bytes(vocab, added, byte_level),
        special_ids=special,
        skipped_ids=frozenset(flagged),
        added=added,
        missing=missing_bytes(text_vocab, byte_level),
        byte_level=byte_level,
    )


def _mapping(value: object, where: str, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadTokenizer(f"{where}: {name!r} is missing or no object")
    return value


def _check_steps(step: object, inner: str, known: tuple[str, ...], where: str, depth: int = 0) -> None:
    """Refuses a normalizer or pre-tokenizer that is not known to keep all text."""
    if step is None:
        return
    kind = step.get("type") if isinstance(step, dict) else None
    if not isinstance(step, dict) or kind not in known or depth > 2:
        raise BadTokenizer(f"{where}: the step {str(kind)[:40]!r} is not read; these are: {', '.join(known)}")
    if kind == "Replace" and (step.get("pattern"), step.get("content")) != ({"String": " "}, SPACE_MARK):
        raise BadTokenizer(f"{where}: a Replace of anything but a space by U+2581 is not read")
    if kind == "Metaspace" and step.get("replacement") != SPACE_MARK:
        raise BadTokenizer(f"{where}: a Metaspace other than U+2581 is not read")
    if kind in ("Split", "Punctuation") and step.get("behavior") == "Removed":
        raise BadTokenizer(f"{where}: a {kind} that removes text is not read")
    if kind == "Sequence":
        steps = step.get(inner)
        if not isinstance(steps, list):
            raise BadTokenizer(f"{where}: a Sequence without its list of {inner}")
        for part in steps:
            _check_steps(part, inner, known, where, depth + 1)


def _checked_id(value: object, where: str, token: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKEN_ID:
        raise BadTokenizer(f"{where}: the id of {token[:40]!r} must be within 0..{MAX_TOKEN_ID}")
    return value


def _checked_vocab(model: Mapping[str, Any], where: str) -> dict[str, int]:
    # Early tokenizer.json files leave the type out where it is BPE.
    if model.get("type", "BPE") != "BPE":
        raise BadTokenizer(f"{where}: the tokenizer model is {model.get('type')!r}; only BPE is read")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise BadTokenizer(f"{where}: {name} is set, which is not read")
    vocab = _mapping(model.get("vocab"), where, "model.vocab")
    checked = {token: _checked_id(index, where, token) for token, index in vocab.items()}
    if len(set(checked.values())) != len(checked):
        raise BadTokenizer(f"{where}: two tokens of model.vocab have the same id")
    if not isinstance(model.get("merges"), list):
        raise BadTokenizer(f"{where}: 'model.merges' is missing or no list")
    return checked


def _checked_added(entries: object, where: str) -> tuple[dict[str, int], set[int]]:
    """Content -> id of every added token, and the ids of those flagged special."""
    if not isinstance(entries, list):
        raise BadTokenizer(f"{where}: 'added_tokens' is no list")
    added: dict[str, int] = {}
    flagged: set[int] = set()
    for entry in entries:
        content = _mapping(entry, where, "added_tokens[]").get("content")
        if not isinstance(content, str) or not content:
            raise BadTokenizer(f"{where}: an added token has no content")
        index = _checked_id(entry.get("id"), where, content)
        if content in added or index in added.values():
            raise BadTokenizer(f"{where}: added token {content!r} (id {index}) is there twice")
        added[content] = index
        if entry.get("special") is True:
            flagged.add(index)
    return added, flagged


def _maps_bytes(step: Any) -> bool:
    """Whether a (checked) pre-tokenizer turns text into the byte alphabet."""
    if step is None:
        return False
    return step["type"] == "ByteLevel" or any(map(_maps_bytes, step.get("pretokenizers", ())))


def _template_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**spec, "post_processor": None, "truncation": None, "padding": None}


def _text_spec(spec: Mapping[str, Any], special: frozenset[int], byte_level: bool) -> dict[str, Any]:
    """The spec without added tokens, and with no way for plain text to reach their ids."""
    model = dict(spec["model"])
    # Some vocabularies list the added tokens too, and merges (or ignore_merges) could then arrive at them.
    vocab = {token: index for token, index in model["vocab"].items() if index not in special}
    removed = model["vocab"].keys() - vocab.keys()
    model["vocab"] = vocab
    model["merges"] = [merge for merge in model["merges"] if not _touches(merge, removed)]
    model["unk_token"] = None
    model["dropout"] = None
    if not byte_level:
        model["ignore_merges"] = False  # else the text "<0x0A>" would come out as a line end
    text_spec = _template_spec(spec)
    text_spec["added_tokens"] = []
    text_spec["model"] = model
    text_spec["normalizer"] = _without_prefix(copy.deepcopy(spec.get("normalizer")))
    text_spec["pre_tokenizer"] = _without_prefix(copy.deepcopy(spec.get("pre_tokenizer")))
    text_spec["decoder"] = None
    return text_spec


def _touches(merge: object, removed: set[str]) -> bool:
    if not removed:
        return False
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return False  # malformed; the tokenizers package says so
    return bool(removed.intersection((*parts, "".join(parts))))


def _without_prefix(part: Any) -> Any:
    """The normalizer or pre-tokenizer `part` without the space that some put before every text."""
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    if part.get("type") in ("Metaspace", "ByteLevel"):
        part["add_prefix_space"] = False
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
    for key in ("normalizers", "pretokenizers"):
        if isinstance(part.get(key), list):
            inner = [_without_prefix(item) for item in part[key]]
            part[key] = [item for item in inner if item is not None]
    return part


def _encoder(spec: Mapping[str, Any], where: str) -> Encoder:
    try:
        return Encoder.from_str(json.dumps(spec))
    except Exception as error:  # the package raises no narrower class
        raise BadTokenizer(f"{where}: not a usable tokenizer ({str(error)[:200]})") from error
