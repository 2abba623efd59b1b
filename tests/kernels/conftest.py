"""What the tests of the ops share: random inputs with readable ids, and one measure of error."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
