"""The models on this machine: which there are, and where. Knows folders and names; opens no weights.

Nothing is downloaded here. Import names from here.
"""

from __future__ import annotations

from salalocal.hub.find import ModelEntry, find_model, home, list_models, models_folder

__all__ = ["ModelEntry", "find_model", "home", "list_models", "models_folder"]
