"""The models on this machine: which there are, and where. Knows folders and names; opens no weights.

Nothing is downloaded here. Import names from here.
"""

from __future__ import annotations

from salalocal.hub.configs import find_config
from salalocal.hub.find import BUNDLED, EMBEDDED_MODEL, ModelEntry, find_model, home, list_models, models_folder

__all__ = [
    "BUNDLED",
    "EMBEDDED_MODEL",
    "ModelEntry",
    "find_config",
    "find_model",
    "home",
    "list_models",
    "models_folder",
]
