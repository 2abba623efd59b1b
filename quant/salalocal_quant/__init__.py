"""Weight formats: reading, packing and unpacking. Knows nothing of `salalocal`."""

from salalocal_quant.dense import DenseWeight, Weight
from salalocal_quant.gguf import GgufFile, GgufTensor
from salalocal_quant.gguf_header import GgufError
from salalocal_quant.gguf_llama import (
    UnsupportedGguf,
    llama_config,
    llama_tensor_name,
    llama_tensor_names,
    read_llama_tensor,
)

__all__ = [
    "DenseWeight",
    "GgufError",
    "GgufFile",
    "GgufTensor",
    "UnsupportedGguf",
    "Weight",
    "llama_config",
    "llama_tensor_name",
    "llama_tensor_names",
    "read_llama_tensor",
]
