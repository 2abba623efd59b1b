"""`salalocal chat [PATH...]`: a conversation about documents, which are read once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

import salalocal
from salalocal.byte_sizes import parse_gpu_memory
from salalocal.cli.interrupt import cancel_on_interrupt
from salalocal.cli.opening import (
    choose_model,
    file_tokens,
    load_engine,
    read_documents,
    say_what_to_expect,
    saying_what_to_drop,
)
from salalocal.cli.options import (
    DeviceOption,
    DtypeOption,
    EvidenceOption,
    GpuMemoryOption,
    KvOption,
    MaxTokensOption,
    ModelOption,
    PrefillOption,
    SeedOption,
    TemperatureOption,
)
from salalocal.cli.prompt import read_line
from salalocal.cli.terminal import ReadingBar, one_line, print_error, print_note, stdout
from salalocal.cli.turn import Turn, figures, follow, print_evidence
from salalocal.errors import BadInput, Cancelled

if TYPE_CHECKING:
    from salalocal import Document, Engine, Message, Sampling

# "/new" is a command, "/etc/passwd holds what?" is a question.
_COMMAND = re.compile(r"/[^/\s]*$")
COMMANDS = {
    "/docs": "the documents and their tokens",
    "/new": "a new conversation; what was read stays",
    "/help": "this list",
    "/quit": "leave (so do Ctrl-D, and Ctrl-C on an empty line)",
}


def chat(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Files, folders or zip archives to read first.")
    ] = None,
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
) -> None:
    """Read documents once, then talk about them.

    Ctrl-C stops what is going on, reading or answering, and keeps what was read. On an empty line it
    leaves, as Ctrl-D does. In the chat: /docs, /new, /help, /quit.
    """
    gpu_bytes = parse_gpu_memory(gpu_memory)
    sampling = salalocal.Sampling(temperature=temperature, seed=seed, max_tokens=max_tokens)
    name = choose_model(model)
    documents = read_documents(paths or [])
    conversation = Conversation(
        load_engine(name, device, dtype, prefill, gpu_bytes, kv), documents, sampling, evidence=evidence
    )
    stdout().print(f"salalocal {salalocal.__version__} · {name}", style="bold")
    conversation.read()
    print_note("Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands.")
    while (line := read_line()) is not None:
        line = line.strip()
        if line == "/quit":
            return
        if line:
            conversation.take(line)


class Conversation:
    """The documents, the session that holds what was read of them, and the messages so far."""

    def __init__(
        self, engine: Engine, documents: list[Document], sampling: Sampling, *, evidence: bool = False
    ) -> None:
        self._engine = engine
        self._documents = documents
        self._sampling = sampling
        self._evidence = evidence
        self._session = engine.new_session()
        self._messages: list[Message] = []

    def take(self, line: str) -> None:
        """One typed line: a command or a question. Errors that other input mends are shown, not raised."""
        if _COMMAND.match(line):
            self._command(line)
            return
        try:
            self._answer(line)
        except BadInput as error:
            print_error(str(error))
            if self._messages:
                print_note("/new starts over and keeps the documents")

    def _answer(self, question: str) -> None:
        messages = [*self._messages, salalocal.Message("user", question)]
        # Around the printing too: a late Ctrl-C must not end the chat.
        with cancel_on_interrupt() as cancel, saying_what_to_drop(self._engine, self._documents):
            events = self._engine.chat(self._session, messages, self._documents, self._sampling, cancel=cancel)
            try:
                turn = follow(events, cancel)
            except Cancelled as error:
                print_note(str(error))
                return
            # A stopped answer stays in the conversation as far as it was seen, so that one can ask to go on.
            if turn.answer:
                self._messages = [*messages, salalocal.Message("assistant", turn.answer)]
            self._print_end(turn)

    def _print_end(self, turn: Turn) -> None:
        print_evidence(turn, with_passages=self._evidence)
        if turn.stopped:
            print_note("stopped")
        elif turn.done.finish_reason == "length":
            print_note(f"ended at {turn.done.usage.completion_tokens:,} tokens; --max-tokens allows more")
        print_note(figures(turn.done))

    def _command(self, line: str) -> None:
        if line == "/help":
            for command, meaning in COMMANDS.items():
                stdout().out(f"  {command:<6} {meaning}")
        elif line == "/new":
            self._messages = []
            print_note("a new conversation; what was read stays")
        elif line == "/docs":
            self._list_documents()
        else:
            print_error(f"there is no command {line}; /help lists the commands")

    def _list_documents(self) -> None:
        sizes = file_tokens(self._engine, self._documents)
        if not sizes:
            print_note("no documents; name some when starting: salalocal chat PATH...")
            return
        for path, tokens in sizes:
            stdout().out(f"  {tokens:>10,}  {one_line(path)}")
        held, limit = self._session.length, self._engine.max_context_tokens()
        stdout().out(f"  {sum(tokens for _, tokens in sizes):>10,}  in all; the session holds {held:,} of {limit:,}")

    def read(self) -> None:
        """Read the documents ahead of the first question; Ctrl-C stops, and the next question goes on from there.

        Raises:
            ContextTooLong: they do not fit; nothing was read.
        """
        if not self._documents:
            return
        ids = self._engine.encode(self._documents)
        if len(ids) <= self._engine.max_context_tokens():
            say_what_to_expect(self._engine, len(ids))
        with (
            cancel_on_interrupt() as cancel,
            saying_what_to_drop(self._engine, self._documents),
            ReadingBar(cancel) as bar,
        ):
            bar.wait()
            try:
                self._session.prefill(ids, checkpoints_at=(len(ids),), on_progress=bar.show, cancel=cancel)
            except Cancelled as error:
                bar.close()
                print_note(
                    f"stopped after {error.length:,} of {len(ids):,} tokens; the first question reads on from there"
                )
                return
        names = ", ".join(document.name for document in self._documents)
        print_note(f"read {names}: {len(ids):,} tokens")
        if (note := self._engine.length_note(len(ids))) is not None:
            print_note(note)


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("chat")(chat)
