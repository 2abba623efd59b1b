"""The 13 RULER tasks (Hsieh et al. 2024, arXiv 2404.06654), regenerated from their published definitions.

sample.py       what a sample is, and how one is grown to a length
needles.py      eight needle tasks: single, multi-key, multi-value, multi-query
aggregation.py  variable tracking, common words, frequent words
questions.py    two question tasks over planted paragraphs
tasks.py        all of them by name
run.py          a model on them, and the figures of the paper; the only one that knows engines
"""
