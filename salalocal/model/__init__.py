"""The network and nothing else: embedding, layers, head."""
