"""What the terminal gets: text, dim lines, the reading bar, one JSON object. Knows nothing of engines or documents.

Answers and data go to stdout; progress, notes and errors to stderr. Where a stream is not a terminal
it gets plain text without a single control code.
"""

from __future__ import annotations

import json
import threading
import time
from types import TracebackType
from typing import Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

LOG_EVERY_SECONDS = 10.0
_REMOVED_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class ReadingProgress(Protocol):
    """What the bar needs of `salalocal.Progress`."""

    @property
    def done_tokens(self) -> int: ...
    @property
    def total_tokens(self) -> int: ...
    @property
    def tokens_per_second(self) -> float: ...
    @property
    def seconds_left(self) -> float: ...


def stdout() -> Console:
    """The console for answers and tables; made per use, so that redirected streams are honoured."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def stderr() -> Console:
    """The console for progress, notes and errors."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def printable(text: str) -> str:
    """`text` without control characters other than newline and tab: a document or a model's answer
    must not be able to drive the terminal."""
    return text.translate(_REMOVED_CONTROLS)


def one_line(text: str) -> str:
    """`text` as a single printable line."""
    return printable(" ".join(text.split()))


def print_json(data: dict[str, object] | list[object]) -> None:
    """The one JSON object of a `--json` run, on stdout; NaN and Infinity never appear in it."""
    stdout().out(json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False))


def print_error(message: str) -> None:
    """One line on stderr."""
    console = stderr()
    console.print(Text.assemble(("error: ", "bold red"), one_line(message)))


def print_note(message: str) -> None:
    """One dim line on stderr: what a reader may skip."""
    stderr().print(Text(one_line(message), style="dim"))


def human_bytes(count: int) -> str:
    """`count` bytes in decimal units, as disks are sold: '512 B', '93.2 MB', '19.4 GB'."""
    if count < 1000:
        return f"{count} B"
    scale, unit = max(pair for pair in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= pair[0])
    return f"{count / scale:.1f} {unit}"


def human_count(count: int) -> str:
    """A count of parameters: '9.5B', '134.5M', '12,345'."""
    if count >= 10**9:
        return f"{count / 1e9:.1f}B"
    if count >= 10**6:
        return f"{count / 1e6:.1f}M"
    return f"{count:,}"


def human_seconds(seconds: float) -> str:
    """A time left as people say it: '8 s', '2 min 05 s', '1 h 12 min'."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class AnswerWriter:
    """Streams an answer to stdout; on a terminal lines break between words, elsewhere text passes as it is."""

    def __init__(self) -> None:
        self._console = stdout()
        self._column = 0
        self._pending = ""
        self._mid_line = False

    def write(self, text: str) -> None:
        """Print `text`; on a terminal the last, perhaps unfinished word waits for its end."""
        text = printable(text)
        if self._console.is_terminal:
            for char in text:
                self._take(char)
        else:
            self._emit(text)
        self._console.file.flush()

    def finish(self) -> None:
        """Write what waits and end the line."""
        self._flush_word()
        if self._mid_line:
            self._emit("\n")
        self._console.file.flush()

    def _take(self, char: str) -> None:
        if not char.isspace():
            self._pending += char
            # Scripts without spaces would never flush: past half a line a "word" is written as it comes.
            if cell_len(self._pending) > self._console.width // 2:
                self._flush_word()
            return
        self._flush_word()
        if char == "\n":
            self._emit("\n")
            self._column = 0
        elif self._column < self._console.width - 1:
            self._emit(" ")
            self._column += 1

    def _flush_word(self) -> None:
        width = cell_len(self._pending)
        if self._column and self._column + width > self._console.width:
            self._emit("\n")
            self._column = 0
        self._emit(self._pending)
        self._column += width
        self._pending = ""

    def _emit(self, text: str) -> None:
        if text:
            self._console.file.write(text)
            self._mid_line = not text.endswith("\n")


class ReadingBar:
    """Progress of reading on stderr: a live bar on a terminal, else a line every ten seconds.

    Use as a context manager; the bar appears with the first call of `wait` or `show` and disappears when the
    block ends. Once `cancel` is set the bar says so, though the engine only stops at the end of its chunk.
    """

    def __init__(self, cancel: threading.Event) -> None:
        self._console = stderr()
        self._cancel = cancel
        self._bar: RichProgress | None = None
        self._logged_at = time.monotonic()

    def __enter__(self) -> ReadingBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar from the screen; a later `show` brings a new one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def wait(self) -> None:
        """Draw a bar that only moves, until the first chunk has been read and there is something to say."""
        if self._console.is_terminal:
            self._draw(None, 0, "")

    def show(self, progress: ReadingProgress) -> None:
        """Draw or log how far reading has come."""
        if self._console.is_terminal:
            self._draw(progress.total_tokens, progress.done_tokens, _detail(progress))
        elif time.monotonic() - self._logged_at >= LOG_EVERY_SECONDS:
            self._logged_at = time.monotonic()
            self._console.print(progress_line(progress))

    def _draw(self, total: int | None, done: int, detail: str) -> None:
        if self._bar is None:
            self._bar = RichProgress(
                _Verb(self._cancel),
                BarColumn(bar_width=28),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[detail]}", style="dim"),
                console=self._console,
                transient=True,
            )
            self._bar.add_task("reading", total=None, detail="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], total=total, completed=done, detail=detail)


class _Verb(ProgressColumn):
    """ "reading", or "stopping" from the moment that Ctrl-C was pressed."""

    def __init__(self, cancel: threading.Event) -> None:
        super().__init__()
        self._cancel = cancel

    def render(self, _task: Task) -> Text:
        return Text("stopping", "bold yellow") if self._cancel.is_set() else Text("reading ", "bold")


def progress_line(progress: ReadingProgress) -> str:
    """How far reading has come, as a plain line."""
    percent = 100 * progress.done_tokens // max(1, progress.total_tokens)
    return f"reading {percent} % · {_detail(progress)}"


def _detail(progress: ReadingProgress) -> str:
    detail = f"{progress.done_tokens:,} of {progress.total_tokens:,} tokens"
    if progress.tokens_per_second > 0:
        detail += f" · {progress.tokens_per_second:,.0f} tokens/s"
        if progress.done_tokens < progress.total_tokens:
            detail += f" · {human_seconds(progress.seconds_left)} left"
    return detail
