"""Puts delivered weight shards and the corpus's tokenizer together into one model folder.

`python -m salalocal.training.join SHARDS --corpus DIR --out FOLDER`
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer

from salalocal.training.export import export, export_master, load_weights, read_geometry
from salalocal.training.filler import TOKENIZER_FILE
from salalocal.training.network import Execution, Network


def main() -> None:
    """Command line of the joiner."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("shards", type=Path, help="folder with config.json and model-*.safetensors")
    parser.add_argument("--corpus", type=Path, default=Path(".corpus"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--master", type=Path, help="also write weights to go on training from, as int8")
    arguments = parser.parse_args()
    network = Network(read_geometry(arguments.shards), Execution())
    load_weights(network, arguments.shards)
    if arguments.master:
        export_master(network, arguments.master)
    export(network, Tokenizer.from_file(str(arguments.corpus / TOKENIZER_FILE)), arguments.out)


if __name__ == "__main__":
    main()
