"""`salalocal doc tokens PATH...`: how much of a model's context documents take, file by file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.cells import cell_len

import salalocal
from salalocal.cli.opening import choose_model
from salalocal.cli.options import JsonOption, ModelOption
from salalocal.cli.terminal import one_line, print_json, stdout

# Deeper folders are shown in one piece: names inside an archive can nest as deep as their writer liked.
MAX_DEPTH = 32

doc_app = typer.Typer(help="Look at documents before reading them.", rich_markup_mode=None, no_args_is_help=False)


@dataclass
class Node:
    """A folder with its children, or a file; `tokens` of a folder is the sum of what lies in it."""

    tokens: int = 0
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, parts: list[str], tokens: int) -> None:
        """Put a file of `tokens` tokens below this folder."""
        self.tokens += tokens
        if parts:
            self.children.setdefault(parts[0], Node()).add(parts[1:], tokens)

    def lines(self, name: str, before: str = "", guide: str = "") -> Iterator[tuple[str, int]]:
        """(name with tree guides, tokens) of this node and all below it."""
        yield before + guide + one_line(name) + ("/" if self.children else ""), self.tokens
        if guide:
            before += "│  " if guide == "├─ " else "   "
        for child_name, child in self.children.items():
            last = child_name == next(reversed(self.children))
            yield from child.lines(child_name, before, "└─ " if last else "├─ ")


@doc_app.command("tokens", short_help="Count the tokens of documents, file by file.")
def tokens(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files, folders or zip archives.")],
    model: ModelOption = None,
    json: JsonOption = False,
) -> None:
    """Count the tokens of documents with a model's own tokenizer, and list what would be skipped and why.

    Loads no weights. The frame around documents in a prompt adds a few tokens per file.
    """
    from salalocal.describe import describe

    name = choose_model(model)
    documents = [salalocal.read(path) for path in paths]
    description = describe(name)
    tokenizer = description.require_tokenizer()
    counted = [
        (
            document,
            [(file.path, sum(len(tokenizer.encode_text(span.text)) for span in file.spans)) for file in document.files],
        )
        for document in documents
    ]
    total = sum(count for _, files in counted for _, count in files)
    if json:
        print_json(
            {
                "model": name,
                "total_tokens": total,
                "documents": [
                    {
                        "name": document.name,
                        "tokens": sum(count for _, count in files),
                        "files": [{"path": path, "tokens": count} for path, count in files],
                        "skipped": [{"path": one.path, "reason": one.reason} for one in document.skipped],
                    }
                    for document, files in counted
                ],
            }
        )
        return
    rows: list[tuple[str, int]] = []
    for document, files in counted:
        root = Node()
        for path, count in files:
            is_the_document = path == document.name and len(files) == 1
            root.add([] if is_the_document else path.split("/", MAX_DEPTH), count)
        rows.extend(root.lines(document.name))
    rows.append(("total", total))
    width = max(cell_len(label) for label, _ in rows)
    console = stdout()
    for label, count in rows:
        console.out(f"{label}{' ' * (width - cell_len(label))}  {count:>11,}")
    skipped = [one for document in documents for one in document.skipped]
    if skipped:
        console.out("\nskipped")
        for one in skipped:
            console.out(f"  {one_line(one.path)}: {one_line(one.reason)}")


def register(app: typer.Typer) -> None:
    """Adds the verb group to the command line."""
    app.add_typer(doc_app, name="doc")
