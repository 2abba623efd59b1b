"""Checks of the engine against cases computed elsewhere, and of models against facts in long texts."""
