"""The mean of several trained models, weight by weight: `python -m salalocal.training.average A B --out C`.

Weights that one training run left behind and those it began from often do better together than either: what each has
learnt by chance goes, what both know stays (Wortsman et al. 2022, "Model soups").
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from salalocal.errors import SalaError
from salalocal.training import export
from salalocal.training.network import Execution, Network

log = logging.getLogger(__name__)


def average(folders: Sequence[Path], out: Path) -> None:
    """Writes the mean of exported folders, packed or not, with the config and tokenizer of the first.

    Args:
        folders: of one geometry.
        out: takes the model in bfloat16.
    """
    tokenizer = Tokenizer.from_file(str(folders[0] / "tokenizer.json"))
    geometry = replace(export.read_geometry(folders[0]), vocab_size=tokenizer.get_vocab_size())
    network = Network(geometry, Execution(dtype=torch.float32, compile=False, sparse_method="mask"))
    sums: dict[str, torch.Tensor] = {}
    for folder in folders:
        export.load_weights(network, folder)
        for name, value in network.state_dict().items():
            sums[name] = sums.get(name, 0) + value.double()
    network.load_state_dict({name: value / len(folders) for name, value in sums.items()})
    export.export(network, tokenizer, out)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m salalocal.training.average", description="Average trained models.")
    parser.add_argument("folders", type=Path, nargs="+", help="exported models of one geometry, packed or not")
    parser.add_argument("--out", type=Path, required=True, help="folder for the mean, in bfloat16")
    options = parser.parse_args(arguments)
    try:
        average(options.folders, options.out)
    except SalaError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
