"""The other side of `template.py`: renders one chat template and exits. Run by path, never imported.

Knows Jinja and the standard library only, so that it starts in a tenth of a second. A template comes with
the model and may be hostile: it gets a sandbox without attributes to climb on, a limit on processor time
and memory where the system has them, a timer everywhere, and a limit on output.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import datetime
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

TIMED_OUT = 3  # exit status


class _Raised(TemplateError):
    """The template called raise_exception."""


def _limit(seconds: int, memory_bytes: int) -> None:
    timer = threading.Timer(seconds, os._exit, (TIMED_OUT,))
    timer.daemon = True
    timer.start()
    try:
        import resource  # not on Windows; the parent watches memory and time as well

        # The second beyond the timer's is for a single long operation that never lets the timer run.
        resource.setrlimit(resource.RLIMIT_CPU, (seconds + 1, seconds + 2))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (ImportError, ValueError, OSError):
        return


def _raise_exception(message: str) -> NoReturn:
    raise _Raised(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    allowed = {key: options[key] for key in ("separators", "sort_keys") if key in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **allowed)


def _render(job: dict[str, Any]) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    template = environment.from_string(job["template"])
    parts: list[str] = []
    length = 0
    for part in template.generate(**job["variables"]):
        length += len(part)
        if length > job["output_chars"]:
            raise MemoryError
        parts.append(part)
    return "".join(parts)


def main() -> None:
    job = json.load(sys.stdin)
    _limit(job["seconds"], job["memory_bytes"])
    try:
        answer = {"text": _render(job)}
    except _Raised as error:
        answer = {"refused": str(error)[:500]}
    except SecurityError as error:
        answer = {"failed": f"it tries what templates may not do ({error})"[:500]}
    except TemplateError as error:
        answer = {"failed": f"{type(error).__name__}: {error}"[:500]}
    except MemoryError:
        answer = {"failed": "it needs more memory or writes more text than a template may"}
    except RecursionError:
        answer = {"failed": "it is nested too deeply"}
    except (ArithmeticError, AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        answer = {"failed": f"{type(error).__name__}: {error}"[:500]}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
