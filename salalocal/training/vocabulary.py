"""Trains and writes the embedded model's tokenizer: byte-level BPE, digits single, ChatML turns.

Knows the special tokens and the chat template that ship with the model; rendering prompts is the runtime's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from salalocal.errors import BadTokenizer

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Plain ChatML. Answers are copied token by token from the text, so they usually begin with a blank."""

CLOSER_LOOK_TOKENS = 1024
"""How much of a long document is read again before it is answered from (`salalocal.engine.closer_look`)."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over `texts`; ids 0-2 are the special tokens, every byte has a token, decoding is exact."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token. Raises BadTokenizer where the tokenizer has none of that name."""
    number: int | None = tokenizer.token_to_id(token)
    if number is None:
        raise BadTokenizer(f"the tokenizer has no token {token}; the corpus builder trains one that has")
    return number


def write_tokenizer_files(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` into `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {
        "eos_token_id": [special_id(tokenizer, TURN_END), special_id(tokenizer, END_OF_TEXT)],
        "pad_token_id": special_id(tokenizer, END_OF_TEXT),
        "do_sample": False,
        "max_new_tokens": 128,
        "salalocal": {"closer_look_tokens": CLOSER_LOOK_TOKENS},
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
