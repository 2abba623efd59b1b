"""`salalocal bench kv`: what K and V of 8 bits in main memory change in selected blocks and logits."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from salalocal.cli.opening import choose_model, read_documents
from salalocal.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption
from salalocal.cli.terminal import print_json, stderr, stdout
from salalocal.errors import InvalidRequest
from salalocal.evaluate.lengths import parse_lengths

if TYPE_CHECKING:
    from salalocal.bench.kv import KvRow

_LEAST, _MOST = 1 << 13, 1 << 21
_HEADER = f"{'K and V':<8} {'chunk':>7} {'changed':>8} {'logits rms':>11} {'KL, nats':>9} {'same token':>11}  by layer"


def kv(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file, folder or zip archive: the end of the text.")],
    length: Annotated[
        str, typer.Option("--length", metavar="N", help="Tokens of the text; K is 1,024 and M 1,024 K.")
    ] = "16K",
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    json: JsonOption = False,
) -> None:
    """Read a text with keys and values in main memory: in full, and rounded to int8 and to fp8.

    For the last 1,024 tokens it tells the share of the blocks chosen in full that are not chosen then (of those that
    are not read anyway, the first and the local ones), and what became of the logits. Beside them stands a second
    reading in full, by chunks half as long: what sums in another order change. A text longer than --length is cut off;
    before a shorter one comes made-up prose.
    """
    lengths = parse_lengths(length, _LEAST, _MOST)
    if len(lengths) > 1:
        raise InvalidRequest(f"--length is {length!r}; one text is read at a time")
    name = choose_model(model)
    (document,) = read_documents([path])
    from salalocal.bench.kv import compare_kv

    console = stderr() if json else stdout()
    console.print(_HEADER, style="bold")
    rows = compare_kv(name, document, lengths[0], lambda row: console.print(_line(row)), device, dtype)
    if json:
        data: list[object] = [{**asdict(row), "changed_share": row.changed_share} for row in rows]
        print_json({"model": name, "tokens": lengths[0], "rows": data})


def _line(row: KvRow) -> str:
    layers = ", ".join(f"{100 * share:.2f}" for share in row.changed)
    return (
        f"{row.kv:<8} {row.chunk_tokens:>7,} {100 * row.changed_share:>6.2f} % {100 * row.logits_rms:>9.2f} % "
        f"{row.divergence:>9.5f} {100 * row.same_token:>9.1f} %  {layers} %"
    )
