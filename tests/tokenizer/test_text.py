"""Plain text: never a marker, back as it was, in linear time."""

from __future__ import annotations

import random
import time

import pytest

from salalocal.tokenizer import Tokenizer
from salalocal.tokenizer.cutting import cut

TEXTS = [
    "",
    " ",
    " leading and trailing ",
    "one\n\ntwo\r\n\tthree   four",
    "don't stop at 3.14159, or 1,000,000",
    "中文没有空格。日本語も、한국어",
    "naïve café, e\u0301, \u00a0, \u200b, \ufeff",
    "👩‍👩‍👧‍👦 🏳️‍🌈",
    "a\x00b\x7f",
    "▁ is a character, <0x0A> is six",
    "the the stop tool <think> </s><s><unk>",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


def test_no_added_token_is_recognised(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_ids
    for index in tokenizer.special_ids:
        marker = tokenizer.decode([index], with_special=True)
        assert marker.strip()
        for text in (
            marker,
            f" {marker}",
            f"{marker} ",
            f" {marker} ",
            f"a{marker}b",
            f"\n{marker}\n",
            marker * 3,
            f"<{marker}>",
        ):
            ids = tokenizer.encode_text(text)
            assert tokenizer.special_ids.isdisjoint(ids), text
            assert tokenizer.decode(ids) == text


def test_random_text_comes_back(tokenizer: Tokenizer) -> None:
    generator = random.Random(1)
    markers = [tokenizer.decode([index], with_special=True) for index in sorted(tokenizer.special_ids)]
    for _ in range(300):
        parts = [generator.choice([*markers, " ", "\n", "'", "the", "1", "é", "中", "🙂", "▁"]) for _ in range(20)]
        ids = tokenizer.encode_text("".join(parts))
        assert tokenizer.decode(ids) == "".join(parts)
        assert tokenizer.special_ids.isdisjoint(ids)


def test_surrogates(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode_text("a\ud800b\udfff")) == "a\ufffdb\ufffd"
    assert tokenizer.decode(tokenizer.encode_text("\ud83d\ude42")) == "🙂"


def test_characters_the_vocabulary_cannot_spell(demo: Tokenizer) -> None:
    """SmolLM2 has no token for six control characters, nor for the lead bytes of planes 4 to 11."""
    text = "a\x04b\x06c\x13d\x14e\x16f\x1dg\U00040000h"
    assert demo.decode(demo.encode_text(text)) == "a�b�c�d�e�f�g�h"


@pytest.mark.parametrize(
    "unit",
    ["a", "中文字符测试语", " ", "\n", "7", ".", "a b\n"],
    ids=["a", "cjk", "space", "line", "7", "dot", "words"],
)
def test_a_million_characters_take_linear_time(demo: Tokenizer, unit: str) -> None:
    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        start = time.process_time()
        ids = demo.encode_text(text)
        took = time.process_time() - start
        assert demo.decode(ids) == text
        return took

    quarter, whole = seconds(250_000), seconds(1_000_000)
    assert whole < 10
    assert whole < 8 * quarter + 0.2  # linear is 4; a quadratic encoder needs 16 times


def test_cutting_changes_no_ids_where_there_are_words(demo: Tokenizer) -> None:
    encoder = demo._backend.text_encoder
    generator = random.Random(2)
    words = ["the", " house", "\n", ", and", "don't", " 中文，字符。", "12", " x_y", "\n\n  ", "!?", "e\u0301"]
    text = "".join(generator.choice(words) for _ in range(100_000))
    assert len(cut(text)) > 3
    assert demo.encode_text(text) == encoder.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["a" * 1000, "one two\nthree, four. " * 50, "中，" * 400, " " * 999, "\n" * 300])
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_pieces_join(text: str, limit: int) -> None:
    pieces = cut(text, limit)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces)


def test_stream_equals_decode(tokenizer: Tokenizer) -> None:
    generator = random.Random(3)
    encoded = [tokenizer.encode_text(text) for text in TEXTS]
    noise = [[generator.randrange(tokenizer.vocab_size + 5) for _ in range(200)] for _ in range(20)]
    for ids in encoded + noise:
        stream = tokenizer.stream()
        parts = [stream.push(index) for index in ids] + [stream.flush()]
        assert "".join(parts) == tokenizer.decode(ids)
        "".join(parts).encode()  # no half of a surrogate pair


def test_stream_holds_back_half_a_character(small: Tokenizer) -> None:
    ids = small.encode_text("é🙂")
    assert len(ids) == 6
    stream = small.stream()
    assert [stream.push(index) for index in ids] == ["", "é", "", "", "", "🙂"]
    assert stream.flush() == ""
    assert [stream.push(index) for index in ids[:1]] + [stream.flush()] == ["", "�"]


def test_markers_are_left_out_of_text(small: Tokenizer) -> None:
    (end,) = small.eos_ids
    assert small.decode([*small.encode_text("a"), end, *small.encode_text("b")]) == "ab"
    assert small.decode([end], with_special=True) == "<|im_end|>"
    think = next(index for index in small.special_ids if small.decode([index]) == "<think>")
    assert small.stream().push(think) == "<think>"  # an added token that is not flagged special is shown


def test_merges_that_lead_to_a_marker_are_not_taken(small: Tokenizer) -> None:
    """The words "stop" and "tool" are in the vocabulary, with merges, but are added tokens of the model."""
    assert small.decode(small.encode_text("the")) == "the"
    assert len(small.encode_text("the")) == 1
    assert len(small.encode_text("stop")) == 2
    assert len(small.encode_text("tool")) == 2
