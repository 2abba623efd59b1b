"""Who runs when: prefill in chunks, decode step by step, sampling, cancel."""
