"""Questions about real sentences of the corpus: turns the passages that `passages.py` found into questions.

Knows wordings, not texts: a passage's key is all it puts into a question.
"""

from __future__ import annotations

from salalocal.training.lexicon import Lexicon
from salalocal.training.passages import Kind
from salalocal.training.relations import question_text
from salalocal.training.statements import Split, split_of

_WORDINGS: dict[Kind, tuple[str, ...]] = {
    Kind.MENTION: (
        'quote the sentence that mentions "{k}"', "what does the text say about {k}", 'where is "{k}" mentioned',
        "which sentence contains {k}", 'find the sentence with "{k}"', "what is said about {k}",
        "quote what it says about {k}",
        'where do the words "{k}" occur', "give me the sentence about {k}", "what do we read about {k}",
        "show me the passage on {k}", "is there a sentence about {k}",
    ),
    Kind.CONTINUE: (
        'how does the sentence "{k} ..." go on', 'complete the sentence: "{k}"', 'what comes after "{k}"',
        'continue: "{k}"', 'finish the quotation "{k}"', 'which words follow "{k}"', 'what follows "{k}"',
        'how does it go on after "{k}"', '{k} ... what',
    ),
    Kind.DEFINED: (
        "where is {k} defined", "show me the definition of {k}", "quote the line that defines {k}",
        "where is {k} declared",
        "find the definition of {k}", "what is the signature of {k}", "how is {k} defined", "where can I find {k}",
        "in which line is {k} defined",
    ),
    Kind.VALUE: (
        "what is the value of {k}", "what is {k} set to", "which value does {k} have", "to what is {k} set",
        "what does {k} equal", "value of {k}", "what is the constant {k}",
    ),
    Kind.LABEL: (
        'what does it say under "{k}"', "what is given for {k}", "what is the entry for {k}", "{k}: what is it",
        'what stands after "{k}"', "what is listed under {k}", "tell me the {k}", "what is the {k}",
    ),
}  # fmt: skip


_QUOTES = (
    "quote the sentence that answers this: {q}", "{q} quote the sentence", "{q} answer with the sentence from the text",
    "which sentence tells us: {q}", "give me the exact sentence: {q}", "{q} please cite the text",
    "in which sentence is it said: {q}", "{q} show me the passage", "find the sentence that says it: {q}",
    "{q} what does the text say word for word", "quote the text: {q}", "copy the sentence that holds the answer: {q}",
)  # fmt: skip


def quote_question(lexicon: Lexicon, question: str, split: Split) -> str:
    """The request to answer `question` with the whole sentence."""
    known = [frame for frame in _QUOTES if split_of("quote", frame) is split] or [_QUOTES[0]]
    frame = lexicon.pick(*known)
    core = question if frame.startswith("{q}") or lexicon.flip() else question[0].lower() + question[1:]
    text = frame.replace("{q}", core if core.endswith("?") else f"{core}?")
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def reading_question(lexicon: Lexicon, kind: Kind, key: str, split: Split) -> tuple[str, str]:
    """(question, frame) for a passage. ASK passages bring their own question and belong to both splits."""
    if kind is Kind.ASK:
        return (key if lexicon.flip(0.75) else f"{lexicon.word('asking')} {key[0].lower()}{key[1:]}"), "read/ask"
    wordings = _WORDINGS[kind]
    known = [i for i in range(len(wordings)) if split_of("read", kind.name, str(i)) is split] or [0]
    index = known[lexicon.between(0, len(known) - 1)]
    return question_text(lexicon, wordings[index].replace("{k}", key)), f"read/{kind.name.lower()}/{index}"
