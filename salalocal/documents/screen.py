"""What is left out of a folder or an archive by its name or its look: secrets, binaries, minified code.

Knows names and bytes, no files. A file that a user names directly is not screened for secrets.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Without a .gitignore these are the folders that machines fill.
GENERATED_FOLDERS = _words(
    "__pycache__ node_modules bower_components .venv venv .tox .nox .mypy_cache .ruff_cache .pytest_cache "
    ".hypothesis .gradle .idea .ipynb_checkpoints __MACOSX"
)
REPOSITORY_FOLDERS = frozenset((".git", ".hg", ".svn", ".bzr", ".jj"))

_SECRET_NAMES = _words(
    ".netrc _netrc .pgpass .pypirc .npmrc .yarnrc .htpasswd .git-credentials credentials credentials.json "
    ".my.cnf .dockercfg id_rsa id_dsa id_ecdsa id_ed25519 secrets.json secrets.yml secrets.yaml secrets.toml "
    "secrets.env client_secret.json service-account.json service_account.json kubeconfig .vault-token"
)
_SECRET_SUFFIXES = _words(".pem .key .p12 .pfx .pkcs12 .jks .keystore .kdbx .kdb .ppk .tfstate")
_ENV_EXAMPLES = frozenset((".example", ".sample", ".template", ".dist", ".defaults"))
_PRIVATE_KEY = re.compile(rb"^-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----\s", re.MULTILINE)

BINARY_SUFFIXES = _words(
    ".png .jpg .jpeg .gif .bmp .ico .icns .webp .tif .tiff .heic .avif .psd .xcf .mp3 .mp4 .m4a .m4v .wav "
    ".flac .ogg .opus .avi .mov .mkv .webm .ttf .otf .woff .woff2 .eot .so .dll .dylib .exe .bin .o .a .lib "
    ".obj .pyc .pyo .pyd .class .jar .war .wasm .whl .egg .deb .rpm .msi .dmg .iso .img .apk .gz .tgz .bz2 "
    ".xz .zst .lz4 .7z .rar .tar .db .sqlite .sqlite3 .pkl .pickle .npy .npz .pt .pth .ckpt .onnx .gguf "
    ".safetensors .h5 .hdf5 .parquet .feather .arrow .mo .pack .idx"
)
_MINIFIED_NAME = re.compile(r"\.min\.(js|mjs|cjs|css|html)$|[.-](bundle|chunk)\.(js|css)$|\.(js|css|ts)\.map$")
_CODE_SUFFIXES = _words(".js .mjs .cjs .css .json .svg .xml .map .ts .jsx .tsx .php")
_MEAN_LINE_CHARACTERS = 500


def name_reason(path: str) -> str | None:
    """Why `path` is left out of a folder by its name alone: a secret, minified or binary; else None."""
    lowered = PurePosixPath(path.lower())
    if _is_secret(lowered):
        return "may hold a secret (by its name); name it directly to read it"
    if _MINIFIED_NAME.search(lowered.name):
        return "is minified or a source map (by its name); name it directly to read it"
    if lowered.suffix in BINARY_SUFFIXES:
        return f"is binary ({lowered.suffix})"
    return None


def _is_secret(path: PurePosixPath) -> bool:
    is_env = path.name == ".env" or path.suffix == ".env" or path.name.startswith(".env.")
    if is_env:
        return path.suffix not in _ENV_EXAMPLES
    in_key_folder = not {".ssh", ".gnupg", ".aws"}.isdisjoint(path.parts[:-1])
    named = path.name in _SECRET_NAMES or path.suffix in _SECRET_SUFFIXES
    return named or (in_key_folder and path.suffix != ".pub")


def holds_private_key(data: bytes) -> bool:
    """True if `data` has a private key's first line standing by itself."""
    return b"PRIVATE KEY" in data and _PRIVATE_KEY.search(data) is not None


def minified_reason(path: str, text: str) -> str | None:
    """Why `text`, that of the file `path`, is taken for minified or generated code, or None."""
    if len(text) < 4096 or PurePosixPath(path.lower()).suffix not in _CODE_SUFFIXES:
        return None
    mean = len(text) // (text.count("\n") + 1)
    if mean <= _MEAN_LINE_CHARACTERS:
        return None
    return f"is minified ({mean:,} characters a line on average); name it directly to read it"
