"""`salalocal ask PATH... QUESTION`: one question about documents, one answer, the places of its quotes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer

import salalocal
from salalocal.byte_sizes import parse_gpu_memory
from salalocal.cli.interrupt import EXIT_INTERRUPTED, cancel_on_interrupt
from salalocal.cli.opening import choose_model, load_engine, read_documents, say_what_to_expect, saying_what_to_drop
from salalocal.cli.options import (
    DeviceOption,
    DtypeOption,
    EvidenceOption,
    GpuMemoryOption,
    JsonOption,
    KvOption,
    MaxTokensOption,
    ModelOption,
    PrefillOption,
    SeedOption,
    TemperatureOption,
)
from salalocal.cli.terminal import print_json, print_note
from salalocal.cli.turn import Turn, figures, follow, passages_as_data, print_evidence, quotes_as_data, usage_as_data
from salalocal.errors import Cancelled, InvalidRequest


def _check_question(question: str) -> str:
    """Refuses what cannot be meant as a question. Runs before a missing PATH is noticed, because the
    likeliest reason for that is a forgotten question, and a file standing in its place."""
    if not question.strip():
        raise InvalidRequest("the question is empty")
    if os.path.exists(question):
        raise InvalidRequest(f"the last word must be the question, and {question} is a file or folder")
    return question


def _check_words(paths: Sequence[str]) -> None:
    """Refuses a question without quotation marks, whose words but the last came as paths behind a real one."""
    missing = next((path for path in paths[1:] if not os.path.lexists(path)), None)
    if missing is not None and os.path.lexists(paths[0]) and not re.search(r"[./\\]", missing):
        raise InvalidRequest(
            f"{missing}: there is no such file or folder; if it belongs to the question, "
            "put the whole question in quotation marks"
        )


def ask(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files, folders or zip archives to read.")],
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION", help="The question, in quotation marks.", callback=_check_question, is_eager=True
        ),
    ],
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    prefill: PrefillOption = "full",
    gpu_memory: GpuMemoryOption = None,
    kv: KvOption = "full",
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    evidence: EvidenceOption = False,
    json: JsonOption = False,
) -> None:
    """Read documents, answer one question about them, and say where quoted sentences stand.

    The answer and the places go to stdout, progress to stderr. Nothing is ever cut off: documents that
    do not fit are refused with the numbers. Ctrl-C stops and exits with 130.
    """
    gpu_bytes = parse_gpu_memory(gpu_memory)
    sampling = salalocal.Sampling(temperature=temperature, seed=seed, max_tokens=max_tokens)
    name = choose_model(model)
    _check_words(paths)
    documents = read_documents(paths)
    engine = load_engine(name, device, dtype, prefill, gpu_bytes, kv)
    messages = [salalocal.Message("user", question)]
    with cancel_on_interrupt() as cancel, saying_what_to_drop(engine, documents):
        session = engine.new_session()
        try:
            events = engine.chat(session, messages, documents, sampling, cancel, partial(say_what_to_expect, engine))
            turn = follow(events, cancel, silent=json)
        except Cancelled as error:
            print_note(f"stopped while reading, after {error.length:,} tokens")
            raise typer.Exit(EXIT_INTERRUPTED) from error
    if json:
        print_json(
            {
                "model": name,
                "question": question,
                "answer": turn.answer,
                "finish_reason": turn.done.finish_reason,
                "quotes": quotes_as_data(turn.quotes),
                "passages": passages_as_data(turn.passages),
                "documents": [
                    {
                        "name": document.name,
                        "files": [file.path for file in document.files],
                        "skipped": [{"path": one.path, "reason": one.reason} for one in document.skipped],
                    }
                    for document in documents
                ],
                "usage": usage_as_data(turn.done),
            }
        )
    else:
        _print_end(turn, name, max_tokens, evidence)
        if (note := engine.length_note(turn.done.usage.prompt_tokens)) is not None:
            print_note(note)
    if turn.stopped:
        raise typer.Exit(EXIT_INTERRUPTED)


def _print_end(turn: Turn, name: str, max_tokens: int, evidence: bool) -> None:
    print_evidence(turn, with_passages=evidence)
    if turn.stopped:
        print_note("stopped")
    elif turn.done.finish_reason == "length":
        print_note(f"ended at {max_tokens:,} tokens; --max-tokens allows more")
    print_note(f"{name} · {figures(turn.done)}")


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("ask", short_help="Answer one question about documents.")(ask)
