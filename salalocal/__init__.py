"""salalocal: read a shelf of books or a codebase with MiniCPM-SALA on one machine, and ask.

These are the public names. They are imported on first use, so that `import salalocal` costs nothing: torch and the
readers come in only with the name that needs them.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from salalocal.errors import (
    BadCheckpoint,
    BadConfig,
    BadDocument,
    BadInput,
    BadSession,
    BadTokenizer,
    Cancelled,
    ContextTooLong,
    DoesNotFit,
    EngineFailure,
    InvalidRequest,
    ModelNotFound,
    SalaError,
    UnsupportedFormat,
)

if TYPE_CHECKING:
    from salalocal.cache.session_cache import Checkpoint
    from salalocal.documents import Document, Place, Skipped, SourceFile, Span, read
    from salalocal.engine.engine import Engine
    from salalocal.engine.events import Done, Evidence, Token, Usage
    from salalocal.engine.load import load
    from salalocal.engine.progress import Progress
    from salalocal.engine.sampling import Sampling
    from salalocal.engine.session import Session
    from salalocal.evidence import QuoteMatch, ReadPassage
    from salalocal.forecast import Plan
    from salalocal.plans import plan
    from salalocal.quantizer import KindReport, QuantizeProgress, QuantizeReport, quantize
    from salalocal.tokenizer import Message

# PyTorch's CPU threads spin while they wait for each other. With anything else running on the machine that costs far
# more than it saves (decoding SmolLM2 on two busy cores: 2.5 tokens/s, and 20 without), and not at all it costs on a
# quiet one. A short while is as good as none on two busy cores (salalocal-pocket decodes 20 tokens/s with either) and
# much better on quiet ones (51 and 39; reading 905 and 757). It only has effect before torch is first imported, and a
# value the user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__: str

_HOMES = {
    "salalocal.cache.session_cache": ("Checkpoint",),
    "salalocal.documents": ("Document", "Place", "Skipped", "SourceFile", "Span", "read"),
    "salalocal.engine.engine": ("Engine",),
    "salalocal.engine.events": ("Done", "Evidence", "Token", "Usage"),
    "salalocal.engine.load": ("load",),
    "salalocal.engine.progress": ("Progress",),
    "salalocal.engine.sampling": ("Sampling",),
    "salalocal.engine.session": ("Session",),
    "salalocal.evidence": ("QuoteMatch", "ReadPassage"),
    "salalocal.forecast": ("Plan",),
    "salalocal.plans": ("plan",),
    "salalocal.quantizer": ("KindReport", "QuantizeProgress", "QuantizeReport", "quantize"),
    "salalocal.tokenizer": ("Message",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BadCheckpoint",
    "BadConfig",
    "BadDocument",
    "BadInput",
    "BadSession",
    "BadTokenizer",
    "Cancelled",
    "Checkpoint",
    "ContextTooLong",
    "Document",
    "DoesNotFit",
    "Done",
    "Engine",
    "EngineFailure",
    "Evidence",
    "InvalidRequest",
    "KindReport",
    "Message",
    "ModelNotFound",
    "Place",
    "Plan",
    "Progress",
    "QuantizeProgress",
    "QuantizeReport",
    "QuoteMatch",
    "ReadPassage",
    "SalaError",
    "Sampling",
    "Session",
    "Skipped",
    "SourceFile",
    "Span",
    "Token",
    "UnsupportedFormat",
    "Usage",
    "__version__",
    "load",
    "plan",
    "quantize",
    "read",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        # Looked up on demand: importlib.metadata is most of the time that `import salalocal` would take.
        return import_module("importlib.metadata").version("salalocal")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'salalocal' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
