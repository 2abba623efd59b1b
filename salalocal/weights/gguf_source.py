"""A Llama-architecture GGUF file as a source of weights under the names the network uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from salalocal.config import ModelConfig
from salalocal.errors import BadCheckpoint, UnsupportedFormat
from salalocal.weights.source import TensorInfo
from salalocal_quant import GgufError, GgufFile, UnsupportedGguf, llama_config, llama_tensor_names, read_llama_tensor


class GgufSource:
    """Opens `path`; metadata and tensor directory are checked here.

    Attributes:
        config: the network the file describes.
        metadata: the file's key/value pairs, for the tokenizer.

    Raises:
        BadCheckpoint: the file is damaged or incomplete.
        UnsupportedFormat: sound, but of an architecture or with a feature that is not done.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = GgufFile(path)
            values = llama_config(self._file.metadata)
            self._names = llama_tensor_names(self._file)
        except UnsupportedGguf as error:
            raise UnsupportedFormat(_naming(path, error)) from error
        except GgufError as error:
            raise BadCheckpoint(_naming(path, error)) from error
        self.metadata: Mapping[str, object] = self._file.metadata
        tied = "lm_head.weight" not in self._names
        self.config = ModelConfig.llama({**values, "tie_word_embeddings": tied}, str(path))
        self._path = path
        self.files = [path]
        self.tensors: Mapping[str, TensorInfo] = {
            ours: TensorInfo(path.name, tensor.shape, tensor.ggml_type, tensor.readable)
            for ours, theirs in self._names.items()
            for tensor in (self._file.tensors[theirs],)
        }

    def read(self, name: str) -> Tensor:
        """One tensor dequantised to float32 on the CPU."""
        try:
            return read_llama_tensor(self._file, name, self.config.num_attention_heads, self.config.num_key_value_heads)
        except GgufError as error:
            raise BadCheckpoint(_naming(self._path, error)) from error


def _naming(path: Path, error: GgufError) -> str:
    text = str(error)
    return text if str(path) in text else f"{path}: {text}"
