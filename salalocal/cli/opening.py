"""What `chat` and `ask` share before the first token: which model, which documents, does it fit.

Knows the order of things (documents first: a mistyped path must not wait for a model to load).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import salalocal
from salalocal import hub
from salalocal.cli.terminal import human_seconds, one_line, print_note, stderr
from salalocal.errors import BadDocument, ContextTooLong, InvalidRequest

if TYPE_CHECKING:
    from salalocal import Document, Engine
    from salalocal.cli.options import Device, Dtype, Kv, Prefill

LARGEST_NAMED = 3


def choose_model(wanted: str | None) -> str:
    """The model to use: what was asked for, else the only one that somebody installed, else the embedded one.

    Raises:
        InvalidRequest: several are installed and none was named.
    """
    if wanted is not None:
        return wanted
    names = [model.name for model in hub.list_models()]
    others = [name for name in names if name not in hub.BUNDLED]
    if len(others) > 1:
        raise InvalidRequest(f"several models are installed: choose one with --model ({', '.join(names)})")
    return others[0] if others else hub.EMBEDDED_MODEL


def read_documents(paths: Sequence[str]) -> list[Document]:
    """Text of every path, with one note about what was skipped.

    Raises:
        BadDocument: a path cannot be read, or holds no text at all.
    """
    documents = []
    for path in paths:
        document = _read(path)
        if not document.files:
            reason = f": {document.skipped[0].reason}" if document.skipped else ""
            raise BadDocument(f"there is no text to read in {path}{reason}")
        if document.skipped:
            count = len(document.skipped)
            print_note(
                f"{document.name}: {count} {'file' if count == 1 else 'files'} skipped; "
                f"'salalocal doc tokens {path}' says why"
            )
        documents.append(document)
    return documents


def _read(path: str) -> Document:
    """`salalocal.read`, with a spinner that counts files on a terminal."""
    console = stderr()
    if not console.is_terminal:
        return salalocal.read(path)
    with console.status(f"opening {one_line(path)}") as status:
        return salalocal.read(
            path,
            on_progress=lambda done, total: status.update(f"opening {one_line(path)}: {done:,} of {total:,} files"),
        )


def load_engine(
    name: str, device: Device, dtype: Dtype, prefill: Prefill, gpu_memory: int | None, kv: Kv = "full"
) -> Engine:
    """The engine, with a spinner on a terminal while its weights come in."""
    console = stderr()
    with nullcontext() if not console.is_terminal else console.status(f"loading {name}"):
        return salalocal.load(name, device=device, dtype=dtype, prefill=prefill, gpu_memory=gpu_memory, kv=kv)


@contextmanager
def saying_what_to_drop(engine: Engine, documents: Sequence[Document]) -> Iterator[None]:
    """Adds to a `ContextTooLong` from inside the block which files weigh most.

    Raises:
        ContextTooLong: the same refusal, its message naming the largest files with their token counts.
    """
    try:
        yield
    except ContextTooLong as error:
        sizes = sorted(file_tokens(engine, documents), key=lambda size: -size[1])
        if not sizes:
            raise
        surplus = error.needed_tokens - error.limit_tokens
        way_out = engine.way_out(error.needed_tokens)
        largest = ", ".join(f"{path} ({tokens:,})" for path, tokens in sizes[:LARGEST_NAMED])
        raise ContextTooLong(
            f"{error.needed_tokens:,} tokens are needed and {error.limit_tokens:,} fit: "
            f"leave out at least {surplus:,}; the largest: {largest}" + ("" if way_out is None else f"; {way_out}"),
            needed_tokens=error.needed_tokens,
            limit_tokens=error.limit_tokens,
        ) from error


def say_what_to_expect(engine: Engine, tokens: int) -> None:
    """A note with the seconds that reading takes, where this machine's rates are known and it takes any."""
    expected = engine.expected_times(tokens)
    if expected is not None and expected.first_token_seconds >= 1:
        seconds = human_seconds(expected.first_token_seconds)
        print_note(f"{tokens:,} tokens: by this machine's rates they are read in about {seconds}")


def file_tokens(engine: Engine, documents: Sequence[Document]) -> list[tuple[str, int]]:
    """(path, tokens) of every file of `documents`, in reading order."""
    return [
        (file.path, len(engine.encode(type(document)(document.name, (file,), ()))))
        for document in documents
        for file in document.files
    ]
