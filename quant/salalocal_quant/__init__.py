"""Weight formats: reading, packing and unpacking. Knows nothing of `salalocal`."""

from salalocal_quant.dense import DenseWeight, Embedding, Weight
from salalocal_quant.gguf import GgufFile, GgufTensor
from salalocal_quant.gguf_header import GgufError
from salalocal_quant.gguf_llama import (
    UnsupportedGguf,
    llama_config,
    llama_tensor_name,
    llama_tensor_names,
    read_llama_tensor,
)
from salalocal_quant.int4 import Int4Weight
from salalocal_quant.int8 import Int8Weight
from salalocal_quant.narrow_weight import MANY_TOKENS, NarrowWeight
from salalocal_quant.packed import GROUP_SIZES, PackedWeight
from salalocal_quant.packing import PackedError, pack_int4, unpack_int4
from salalocal_quant.planes_weight import PlanesWeight
from salalocal_quant.projections import Projections, together

__all__ = [
    "GROUP_SIZES",
    "MANY_TOKENS",
    "DenseWeight",
    "Embedding",
    "GgufError",
    "GgufFile",
    "GgufTensor",
    "Int4Weight",
    "Int8Weight",
    "NarrowWeight",
    "PackedError",
    "PackedWeight",
    "PlanesWeight",
    "Projections",
    "UnsupportedGguf",
    "Weight",
    "llama_config",
    "llama_tensor_name",
    "llama_tensor_names",
    "pack_int4",
    "read_llama_tensor",
    "together",
    "unpack_int4",
]
