"""Every op in plain PyTorch: its definition, and what runs where no kernel does."""
