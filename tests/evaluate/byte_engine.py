"""A tiny random model with a tokenizer: every byte a token, the shortest way to an engine that takes text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from naive_sala import tiny_config, write_model
from tokenizers import Tokenizer as Encoder
from tokenizers import decoders, models, pre_tokenizers, trainers

import salalocal
from salalocal.engine.engine import Engine
from salalocal.tokenizer import Tokenizer

MARKS = ["<|im_end|>", "<|im_start|>"]
VOCABULARY = 512


def write_tokenizer(folder: Path) -> Path:
    """Byte-level BPE with a few merges of English, and the two marks of a turn."""
    encoder = Encoder(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=MARKS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the and was of that in there with over from under stone water evening kept secret number word is are "
    encoder.train_from_iterator([text * 4], trainer)
    encoder.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": MARKS[0]}), "utf-8")
    return folder


def make_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(write_tokenizer(folder))


def make_engine(folder: Path, **changes: Any) -> Engine:
    """Two sparse layers around a lightning layer, sparse from the length that `tiny_config` says."""
    write_model(folder, tiny_config("sls", vocab_size=VOCABULARY, **changes))
    write_tokenizer(folder)
    return salalocal.load(folder, device="cpu", dtype="float32")
