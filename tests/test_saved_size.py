"""Bytes of a saved session: by hand for the released model, and beside what really lies on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

import salalocal
from salalocal.config import ModelConfig
from salalocal.hub import find_config
from salalocal.saved_size import saved_bytes

RELEASED = ModelConfig.from_json(find_config("openbmb/MiniCPM-SALA"))
GOLDEN = Path(__file__).parent / "golden" / "models"
STATE = 24 * 32 * 128 * 128 * 4 + 73448 * 4


def test_a_million_tokens_of_the_released_model_by_hand() -> None:
    tokens = 1 << 20
    kv_and_keys = 8 * 2 * 128 * 2 * (2 * tokens + tokens // 16 + tokens // 64)
    # A checkpoint every 64K but at the end, where the documents end, and at the end.
    assert saved_bytes(RELEASED, 2, tokens) == 4 * tokens + kv_and_keys + (15 + 2) * STATE


def test_checkpoints_are_thinned_out() -> None:
    longer = saved_bytes(RELEASED, 2, 1 << 24) - saved_bytes(RELEASED, 2, 1 << 23)
    assert longer == pytest.approx((1 << 23) * (4 + 8 * 512 * (2 + 1.25 / 16)))


@pytest.mark.parametrize("model", ["m2", "m4"])
def test_what_lies_on_the_disk(model: str, tmp_path: Path) -> None:
    engine = salalocal.load(GOLDEN / model, device="cpu", dtype="float32")
    tokens = 6000
    session = engine.new_session()
    session.prefill([7] * tokens, checkpoints_at=(tokens - 10, tokens))
    session.save(tmp_path)
    taken = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert saved_bytes(engine.config, 4, tokens) == pytest.approx(taken, rel=0.01)
