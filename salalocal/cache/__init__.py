"""What a session remembers: K/V pages, compressed keys, linear states, checkpoints."""
