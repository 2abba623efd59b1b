"""Ops as Triton kernels. Same names and arguments as in `ref/`; imported only where a GPU is used."""
