"""Every error that salalocal raises on purpose. Knows no torch and no other module of the project.

Each message is one sentence that a user can act on: what was wrong (file or field), the limit, the way out.

    SalaError
    ├── BadInput             the caller's input can be corrected (the CLI exits with 2)
    │   ├── ModelNotFound        no model of that name or path on this machine
    │   ├── UnsupportedFormat    a file or an architecture we do not read
    │   ├── BadConfig            config.json: a field is missing, of the wrong type or out of range
    │   ├── BadCheckpoint        a weight file is damaged or does not belong to its config
    │   ├── BadTokenizer         tokenizer or chat template cannot be used
    │   ├── BadDocument          a document cannot be read
    │   ├── BadSession           a saved session is missing, damaged, or of another model, dtype or version
    │   ├── InvalidRequest       an argument of a call is out of range
    │   ├── ContextTooLong       more tokens than the model or the memory can hold
    │   └── DoesNotFit           the weights or the cache exceed the memory, or files the disk
    ├── Cancelled            the caller asked to stop; the session is usable
    └── EngineFailure        something broke that the input cannot mend (the CLI exits with 1)
"""

from __future__ import annotations


class SalaError(Exception):
    """Base of every error raised on purpose; `str(error)` is one sentence for the user."""


class BadInput(SalaError):
    """The caller can mend this by giving something else."""


class ModelNotFound(BadInput):
    """No model of that name or path on this machine."""


class UnsupportedFormat(BadInput):
    """A file format or an architecture that is not read."""


class BadConfig(BadInput):
    """A field of a model's config is missing, of the wrong type, out of range or contradicts another."""


class BadCheckpoint(BadInput):
    """A weight file is damaged, incomplete, or does not belong to its config."""


class BadTokenizer(BadInput):
    """A tokenizer file or chat template cannot be used."""


class BadDocument(BadInput):
    """A document cannot be read."""


class BadSession(BadInput):
    """A saved session is missing, damaged, or of another model, dtype or format version, or cannot be written."""


class InvalidRequest(BadInput):
    """An argument of a call is out of range."""


class ContextTooLong(BadInput):
    """More tokens than the model was trained for (RoPE attention) or than memory can hold.

    `needed_tokens` and `limit_tokens` are the two numbers of the refusal.
    """

    def __init__(self, message: str, *, needed_tokens: int, limit_tokens: int) -> None:
        super().__init__(message)
        self.needed_tokens = needed_tokens
        self.limit_tokens = limit_tokens


class DoesNotFit(BadInput):
    """The weights or the cache exceed the memory there is, or files the disk; sizes in bytes."""

    def __init__(self, message: str, *, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class Cancelled(SalaError):
    """Work stopped because the caller asked for it; the session holds `length` tokens and is usable."""

    def __init__(self, length: int) -> None:
        super().__init__(f"stopped after {length:,} tokens; what was read is kept")
        self.length = length


class EngineFailure(SalaError):
    """Something broke that another input cannot mend."""
