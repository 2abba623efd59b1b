"""MiniCPM-SALA written straight from its specification, in numpy float64, one token at a time. Knows nothing of ours.

Every token runs through all layers before the next begins; a compressed key is the mean of a slice of the cached
keys, recomputed for every query; softmaxes are written out. Slow, and hard to get wrong. Random tiny models of any
shape are made here too, in the vendor's folder format.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

Weights = dict[str, np.ndarray]

SPARSE = {"kernel_size": 4, "kernel_stride": 2, "init_blocks": 1, "block_size": 4, "window_size": 8, "topk": 4,
          "dense_len": 24}  # fmt: skip


def tiny_config(mixers: str = "sls", **changes: object) -> dict[str, object]:
    """A config.json of a tiny model; `mixers` spells the layers, s(parse) or l(ightning)."""
    config: dict[str, object] = {
        "model_type": "minicpm_sala", "hidden_size": 24, "num_hidden_layers": len(mixers), "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 20, "vocab_size": 40, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "max_position_embeddings": 4096, "scale_emb": 3, "scale_depth": 1.4,
        "dim_model_base": 8, "attn_use_rope": False, "lightning_use_rope": True, "qk_norm": True,
        "use_output_gate": True, "use_output_norm": True, "attn_use_output_gate": True, "lightning_nkv": 3,
        "lightning_scale": "1/sqrt(d)", "tie_word_embeddings": False, "eos_token_id": [2],
        "mixer_types": [{"s": "minicpm4", "l": "lightning-attn"}[letter] for letter in mixers],
        "sparse_config": dict(SPARSE),
    }  # fmt: skip
    return {**config, **changes}


def random_weights(config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """bfloat16 tensors under the vendor's names; norms around 1, matrices so that activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv, dim = config["num_key_value_heads"] * (hidden // heads), config["head_dim"]
    wide, lightning_kv = heads * dim, config["lightning_nkv"] * dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (config["vocab_size"], hidden)
    for index, mixer in enumerate(config["mixer_types"]):
        at = f"model.layers.{index}."
        shapes |= {at + "input_layernorm": (hidden,), at + "post_attention_layernorm": (hidden,)}
        shapes |= {at + "mlp.gate_proj": (inner, hidden), at + "mlp.up_proj": (inner, hidden)}
        shapes |= {at + "mlp.down_proj": (hidden, inner)}
        at += "self_attn."
        if mixer == "minicpm4":
            shapes |= {at + "q_proj": (hidden, hidden), at + "k_proj": (kv, hidden), at + "v_proj": (kv, hidden)}
            shapes |= {at + "o_proj": (hidden, hidden)}
            shapes |= {at + "o_gate": (hidden, hidden)} if config["attn_use_output_gate"] else {}
        else:
            shapes |= {at + "q_proj": (wide, hidden), at + "o_proj": (hidden, wide)}
            shapes |= {at + "k_proj": (lightning_kv, hidden), at + "v_proj": (lightning_kv, hidden)}
            shapes |= {at + "z_proj": (wide, hidden)} if config["use_output_gate"] else {}
            shapes |= {at + "q_norm": (dim,), at + "k_norm": (dim,)} if config["qk_norm"] else {}
            shapes |= {at + "o_norm": (wide,)} if config["use_output_norm"] else {}
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        # Keys and queries large enough that softmaxes are far from uniform and selections from arbitrary.
        gain = 2.5 if name.endswith(("self_attn.q_proj", "self_attn.k_proj")) else 1.0
        values = 1 + 0.2 * values if len(shape) == 1 else gain * values / math.sqrt(shape[1])
        tensors[name + ".weight"] = values.bfloat16()
    return tensors


def write_model(folder: Path, config: dict, seed: int = 0) -> Path:
    """A model folder: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(random_weights(config, seed), folder / "model.safetensors")
    return folder


def random_ids(count: int, vocab: int = 40, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


class NaiveSala:
    """The network and its memory. `read(id, is_sparse, final_length)` takes one token and returns its logits."""

    def __init__(self, config: dict, tensors: dict[str, torch.Tensor]) -> None:
        self.config = config
        self.w: Weights = {name.removesuffix(".weight"): x.double().numpy() for name, x in tensors.items()}
        self.keys: dict[int, list[np.ndarray]] = {}
        self.values: dict[int, list[np.ndarray]] = {}
        heads, dim = config["num_attention_heads"], config["head_dim"]
        self.states = {
            n: np.zeros((heads, dim, dim)) for n, kind in enumerate(config["mixer_types"]) if kind != "minicpm4"
        }
        self.position = 0
        self.selected: dict[int, list[list[int]] | None] = {}

    def read(self, token: int, is_sparse: bool, final_length: int | None = None) -> np.ndarray:
        config, w = self.config, self.w
        depth = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
        x = config["scale_emb"] * w["model.embed_tokens"][token]
        for n, kind in enumerate(config["mixer_types"]):
            at = f"model.layers.{n}."
            y = self.rms(x, w[at + "input_layernorm"])
            if kind == "minicpm4":
                mixed = self.sparse(n, y, is_sparse, final_length or self.position + 1)
            else:
                mixed = self.lightning(n, y)
            x = x + depth * mixed
            u = self.rms(x, w[at + "post_attention_layernorm"])
            gate, up = w[at + "mlp.gate_proj"] @ u, w[at + "mlp.up_proj"] @ u
            x = x + depth * (w[at + "mlp.down_proj"] @ (gate / (1 + np.exp(-gate)) * up))
        self.position += 1
        head = w["model.embed_tokens"] if config["tie_word_embeddings"] else w["lm_head"]
        return head @ (self.rms(x, w["model.norm"]) / (config["hidden_size"] / config["dim_model_base"]))

    def rms(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * weight

    def rope(self, x: np.ndarray) -> np.ndarray:
        """x [heads, d] at the present position; angles are float32 products, pairs are halves."""
        half = x.shape[-1] // 2
        theta = np.float32(self.config["rope_theta"])
        frequencies = np.float32(1) / theta ** (np.arange(0, 2 * half, 2, dtype=np.float32) / np.float32(2 * half))
        angles = (np.float32(self.position) * frequencies).astype(np.float64)
        low, high = x[..., :half], x[..., half:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def lightning(self, n: int, y: np.ndarray) -> np.ndarray:
        config, at = self.config, f"model.layers.{n}.self_attn."
        heads, dim = config["num_attention_heads"], config["head_dim"]
        q = (self.w[at + "q_proj"] @ y).reshape(heads, dim)
        k = (self.w[at + "k_proj"] @ y).reshape(-1, dim)
        v = (self.w[at + "v_proj"] @ y).reshape(-1, dim)
        if config["qk_norm"]:
            q, k = self.rms(q, self.w[at + "q_norm"]), self.rms(k, self.w[at + "k_norm"])
        if config["lightning_use_rope"]:
            q, k = self.rope(q), self.rope(k)
        scale = {"1/sqrt(d)": dim**-0.5, "1/d": 1 / dim, "1": 1.0}[config["lightning_scale"]]
        repeat = heads // k.shape[0]
        out = np.empty((heads, dim))
        for a, slope in enumerate(slopes(heads)):
            state = self.states[n][a]
            state *= math.exp(-slope)
            state += np.outer(k[a // repeat], v[a // repeat])
            out[a] = scale * q[a] @ state
        flat = out.reshape(-1)
        if config["use_output_norm"]:
            flat = self.rms(flat, self.w[at + "o_norm"])
        if config["use_output_gate"]:
            flat = flat / (1 + np.exp(-(self.w[at + "z_proj"] @ y)))
        return self.w[at + "o_proj"] @ flat

    def sparse(self, n: int, y: np.ndarray, is_sparse: bool, final_length: int) -> np.ndarray:
        config, at = self.config, f"model.layers.{n}.self_attn."
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        dim = config["hidden_size"] // heads
        q = (self.w[at + "q_proj"] @ y).reshape(heads, dim)
        k = (self.w[at + "k_proj"] @ y).reshape(kv_heads, dim)
        if config["attn_use_rope"]:
            q, k = self.rope(q), self.rope(k)
        self.keys.setdefault(n, []).append(k)
        self.values.setdefault(n, []).append((self.w[at + "v_proj"] @ y).reshape(kv_heads, dim))
        keys, values = np.stack(self.keys[n]), np.stack(self.values[n])
        self.selected[n] = [] if is_sparse else None
        out = np.empty((heads, dim))
        for g in range(kv_heads):
            group = range(g * heads // kv_heads, (g + 1) * heads // kv_heads)
            seen = np.arange(self.position + 1)
            if is_sparse:
                picked = self.select(q[list(group)], keys[:, g], final_length)
                self.selected[n].append(picked)
                seen = seen[np.isin(seen // config["sparse_config"]["block_size"], picked)]
            for a in group:
                logits = keys[seen, g] @ q[a] / math.sqrt(dim)
                weights = np.exp(logits - logits.max())
                out[a] = weights / weights.sum() @ values[seen, g]
        flat = out.reshape(-1)
        if config["attn_use_output_gate"]:
            flat = flat / (1 + np.exp(-(self.w[at + "o_gate"] @ y)))
        return self.w[at + "o_proj"] @ flat

    def select(self, q: np.ndarray, keys: np.ndarray, final_length: int) -> list[int]:
        """Blocks for one query (the newest token) of one kv head; q [G, d], keys [tokens so far, d]."""
        sizes = self.config["sparse_config"]
        stride, block, i = sizes["kernel_stride"], sizes["block_size"], self.position
        scale = q.shape[1] ** -0.5

        def compressed(step: int, size: int) -> list[np.ndarray]:
            """Means of the windows that have ended at or before this token."""
            return [keys[j : j + size].mean(0) for j in range(0, i + 1, step) if j + size <= i + 1]

        fine, coarse = compressed(stride, 2 * stride), compressed(4 * stride, 8 * stride)
        # Windows that will exist in the end but lie in the future score 0.
        total = max(0, (final_length - 2 * stride) // stride + 1)
        scores = np.zeros(total)
        for row in q if coarse else []:
            normaliser = sum(math.exp(scale * row @ key) for key in coarse)
            for j, key in enumerate(fine):
                scores[j] += math.exp(scale * row @ key) / normaliser
        num_blocks, per_block, own = -(-final_length // block), block // stride, i // block
        wanted = []
        for b in range(num_blocks):
            window = scores[max(0, per_block * b - 1) : per_block * b + per_block]
            best = window.max() if len(window) else -math.inf
            forced = b < sizes["init_blocks"] or own - sizes["window_size"] // block <= b <= own
            wanted.append(math.inf if forced else best)
        k = min(sizes["topk"] + sizes["window_size"] // block, num_blocks)
        order = sorted(range(num_blocks), key=lambda b: (-wanted[b], b))[:k]
        return sorted(b for b in order if b <= own)


def slopes(heads: int) -> list[float]:
    """ALiBi slopes, rounded to float32."""

    def powers(n: int) -> list[float]:
        ratio = 2.0 ** -(2.0 ** -(math.log2(n) - 3))
        return [ratio ** (a + 1) for a in range(n)]

    below = 2 ** int(math.log2(heads))
    result = powers(below) if below == heads else powers(below) + powers(2 * below)[0::2][: heads - below]
    return [float(np.float32(slope)) for slope in result]
