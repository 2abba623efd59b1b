"""Each block format against literal bytes and against its definition, written out one value at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from salalocal_quant import GgufError, GgufFile

Write = Callable[..., Path]
HALF, ONE, TWO = 0x3800, 0x3C00, 0x4000  # 0.5, 1.0 and 2.0 in float16


def read_one(write_gguf: Write, kind: str, shape: tuple[int, ...], raw: bytes) -> torch.Tensor:
    with GgufFile(write_gguf({}, {"t": (shape, kind, raw)})) as file:
        return file.read("t")


def test_f32(write_gguf: Write) -> None:
    raw = bytes.fromhex("0000803f 000000c0 0000003e 00000000 00008040 000020c1")
    expected = torch.tensor([[1.0, -2.0, 0.125], [0.0, 4.0, -10.0]])
    assert torch.equal(read_one(write_gguf, "F32", (2, 3), raw), expected)


def test_f16(write_gguf: Write) -> None:
    raw = bytes.fromhex("003c 00c0 0038 ff7b")
    assert read_one(write_gguf, "F16", (4,), raw).tolist() == [1.0, -2.0, 0.5, 65504.0]


def test_bf16(write_gguf: Write) -> None:
    raw = bytes.fromhex("803f 00c0 0042 80bf")
    assert read_one(write_gguf, "BF16", (2, 2), raw).tolist() == [[1.0, -2.0], [32.0, -1.0]]


def test_q4_0(write_gguf: Write) -> None:
    # Byte 0 is 0xF8: value 0 has the code 8, value 16 the code 15; the others are 0x08: codes 8 and 0.
    raw = struct.pack("<H", HALF) + b"\xf8" + b"\x08" * 15
    expected = [0.0] * 16 + [0.5 * (15 - 8)] + [0.5 * (0 - 8)] * 15
    assert read_one(write_gguf, "Q4_0", (32,), raw).tolist() == expected


def test_q4_1(write_gguf: Write) -> None:
    # 2.0 * code + 1.0; byte 1 is 0xA3: value 1 has the code 3, value 17 the code 10.
    raw = struct.pack("<HH", TWO, ONE) + b"\x00\xa3" + b"\x00" * 14
    expected = [1.0] * 32
    expected[1], expected[17] = 7.0, 21.0
    assert read_one(write_gguf, "Q4_1", (1, 32), raw).tolist() == [expected]


def test_q8_0(write_gguf: Write) -> None:
    raw = struct.pack("<H", HALF) + bytes([0x7F, 0x80, 0xFF]) + b"\x02" * 29
    expected = [63.5, -64.0, -0.5] + [1.0] * 29
    assert read_one(write_gguf, "Q8_0", (32,), raw).tolist() == expected


def test_q4_k_literal(write_gguf: Write) -> None:
    scales = bytearray(12)
    scales[0] = 3 | 0b01 << 6  # scale of sub-block 0 is 3; upper bits of sub-block 4's scale are 01
    scales[4] = 5 | 0b10 << 6  # minimum of sub-block 0 is 5; upper bits of sub-block 4's minimum are 10
    scales[8] = 0x2 | 0x7 << 4  # lower bits of sub-block 4: scale 2, minimum 7
    codes = bytearray(128)
    codes[0] = 0x9  # sub-block 0, value 0
    codes[64] = 0x4  # sub-block 4, value 0
    values = read_one(write_gguf, "Q4_K", (256,), struct.pack("<HH", TWO, ONE) + bytes(scales) + bytes(codes))
    assert values[0] == 2.0 * 3 * 9 - 1.0 * 5
    assert values[1] == -5.0
    assert values[128] == 2.0 * (1 << 4 | 2) * 4 - 1.0 * (2 << 4 | 7)
    assert values[129] == -39.0
    assert values[32:128].abs().sum() == 0


def q4_k_by_definition(raw: bytes) -> list[float]:
    """ggml's block_q4_K: two float16, twelve bytes of packed 6-bit scales and minima, 256 4-bit codes."""
    d, d_min = np.frombuffer(raw[:4], dtype="<f2").astype(np.float32)
    packed, codes = raw[4:16], raw[16:]
    values = []
    for block in range(8):
        if block < 4:
            scale, minimum = packed[block] & 63, packed[block + 4] & 63
        else:
            scale = (packed[block + 4] & 0xF) | (packed[block - 4] >> 6) << 4
            minimum = (packed[block + 4] >> 4) | (packed[block] >> 6) << 4
        for index in range(32):
            byte = codes[32 * (block // 2) + index]
            code = byte >> 4 if block % 2 else byte & 0xF
            values.append(float(d * np.float32(scale) * np.float32(code) - d_min * np.float32(minimum)))
    return values


def q6_k_by_definition(raw: bytes) -> list[float]:
    """ggml's block_q6_K: 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, one float16."""
    low, high = raw[:128], raw[128:192]
    scales = np.frombuffer(raw[192:208], dtype=np.int8)
    d = np.frombuffer(raw[208:210], dtype="<f2").astype(np.float32)[0]
    values = [0.0] * 256
    for half in range(2):
        for part in range(4):
            for index in range(32):
                byte = low[64 * half + 32 * (part % 2) + index]
                nibble = byte >> 4 if part >= 2 else byte & 0xF
                code = nibble | ((high[32 * half + index] >> 2 * part) & 3) << 4
                scale = scales[8 * half + 2 * part + index // 16]
                position = 128 * half + 32 * part + index
                values[position] = float(d * np.float32(scale) * np.float32(code - 32))
    return values


def test_q6_k_literal(write_gguf: Write) -> None:
    raw = bytearray(210)
    raw[0] = 0x5  # low nibble of value 0
    raw[128] = 0b11  # its high bits: the code is 0b110101 = 53
    raw[192] = 2  # the first scale
    raw[208:210] = struct.pack("<H", HALF)
    values = read_one(write_gguf, "Q6_K", (256,), bytes(raw))
    assert values[0] == 0.5 * 2 * (53 - 32)
    assert values[1] == 0.5 * 2 * (0 - 32)
    assert values[16:].abs().sum() == 0


@pytest.mark.parametrize(
    ("kind", "block_bytes", "definition"),
    [("Q4_K", 144, q4_k_by_definition), ("Q6_K", 210, q6_k_by_definition)],
)
def test_k_quants_by_definition(
    write_gguf: Write, kind: str, block_bytes: int, definition: Callable[[bytes], list[float]]
) -> None:
    blocks = []
    for seed in range(6):
        block = bytearray(np.random.default_rng(seed).bytes(block_bytes))
        for at in (0, 2) if kind == "Q4_K" else (208,):
            block[at : at + 2] = struct.pack("<e", 0.01 * (seed + 1))  # random bytes could be NaN
        blocks.append(bytes(block))
    values = read_one(write_gguf, kind, (3, 512), b"".join(blocks))
    expected = torch.tensor([value for block in blocks for value in definition(block)]).reshape(3, 512)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)


def test_a_tensor_larger_than_one_step(write_gguf: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salalocal_quant.gguf.CHUNK_ELEMENTS", 96)  # three blocks a step: 35 = 11 * 3 + 2
    generator = np.random.default_rng(5)
    codes = generator.integers(-128, 128, (35, 32), dtype=np.int8)
    raw = b"".join(struct.pack("<e", 0.25) + row.tobytes() for row in codes)
    values = read_one(write_gguf, "Q8_0", (7, 160), raw)
    assert torch.equal(values, torch.from_numpy(codes.reshape(7, 160) * np.float32(0.25)))


def test_a_format_that_cannot_be_dequantised_is_named(write_gguf: Write) -> None:
    with (
        GgufFile(write_gguf({}, {"ids": ((2,), "I32", bytes(8))})) as file,
        pytest.raises(GgufError, match=r"'ids' is stored as I32.*readable are F32, F16"),
    ):
        file.read("ids")


def test_overflowing_scales_become_inf_and_nothing_is_printed(
    write_gguf: Write, recwarn: pytest.WarningsRecorder
) -> None:
    values = read_one(write_gguf, "Q8_0", (32,), struct.pack("<H", 0x7C00) + bytes([1]) + bytes(31))
    assert torch.isinf(values[0])
    assert torch.isnan(values[1:]).all()
    assert not recwarn.list
