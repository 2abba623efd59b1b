"""Ops made for processors, in plain PyTorch. Same names and arguments as in `ref/`."""
