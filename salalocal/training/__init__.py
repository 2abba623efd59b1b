"""How the embedded model was made: corpus, tokenizer, generated questions, network, losses, curriculum.

Nothing in the runtime imports this package. `python -m salalocal.training.corpus` rebuilds the text,
`python -m salalocal.training` trains on it. Knows no user documents and opens no network connection of its own
while training.
"""
