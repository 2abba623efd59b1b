"""Checks of the engine against cases computed elsewhere."""
