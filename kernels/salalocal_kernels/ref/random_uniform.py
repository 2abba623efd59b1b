"""A random number that follows from a seed and a counter alone."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_ROUNDS = 10


def random_uniform(seed: Tensor, counter: Tensor) -> Tensor:
    """Philox-4x32-10: the same seed and counter give the same number on every device.

    Args:
        seed: int64 [1], the key, at least 0.
        counter: int64 [1], 0 to 2^31 - 1.

    Returns:
        float64 [1], 0 <= u < 1, of 53 random bits. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2,
        3" (2011).
    """
    key, count = int(seed), int(counter)
    k0, k1 = key & _WORD, key >> 32
    c0, c1, c2, c3 = count, 0, 0, 0
    for _ in range(_ROUNDS):
        even, odd = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (odd >> 32) ^ c1 ^ k0, odd & _WORD, (even >> 32) ^ c3 ^ k1, even & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    bits = (c0 >> 5 << 26) + (c1 >> 6)
    return torch.tensor([bits / (1 << 53)], dtype=torch.float64, device=seed.device)
