"""Facts as they stand in source code and settings: constants, definitions, keys, and names that occur several times.

Knows no programming language beyond the shape of such lines.
"""

from __future__ import annotations

from salalocal.training.lexicon import Lexicon
from salalocal.training.relations import question_text
from salalocal.training.statements import Ask, Split, Statement, split_of

_VALUE_LINES = (
    "{N} = {v}", "{N}: Final = {v}", "#define {N} {v}", "const {n} = {v};", "{n}: {v}", '    "{n}": {v},', "{N}={v}",
    "export {N}={v}", "    {n} = {v}", "self.{n} = {v}", "static const int {N} = {v};", "let {n} = {v};",
    "    {n}: int = {v}", "set({N} {v})",
)  # fmt: skip
_VALUE_QUESTIONS = (
    "what is the value of {n}", "what is {n} set to", "which value does {n} have", "to what is {n} set",
    "what does {n} equal", "value of {n}", "what is the constant {n}", "how much is {n}", "what value was given to {n}",
    "tell me the value of {n}", "{n} is what", "what is the setting of {n}",
)  # fmt: skip
_DEFINITION_LINES = (
    "def {n}({a}):", "def {n}({a}) -> {t}:", "async def {n}({a}):", "    def {n}(self, {a}):", "fn {n}({a}) -> {t} {",
    "function {n}({a}) {", "class {C}({t}):", "int {n}({a})", "pub fn {n}({a}) {", "struct {C} {",
)  # fmt: skip
_DEFINITION_QUESTIONS = (
    "where is {n} defined", "show me the definition of {n}", "where is the function {n} defined",
    "how is {n} defined", "quote the line that defines {n}", "find the definition of {n}",
    "what is the signature of {n}",
    "in which line is {n} defined", "where do they define {n}", "where can I find {n}",
)  # fmt: skip
_RETURN_QUESTIONS = (
    "what does {n} return",
    "what does {n}() return",
    "what is returned by {n}",
    "what is the result of {n}",
)
_DOC_QUESTIONS = ("what does {n} do", "what is {n} for", "describe {n}", "what is the purpose of {n}")
_MENTIONS = (
    "{x} came back", "nobody had seen {x}", "a letter from {x} lay on the table", "they waited for {x}",
    "the room was empty except for {x}", "{x} laughed", "we asked {x} again", "the dog barked at {x}",
    "{x} closed the window", "there stood {x}", "even {x} was silent", "{x} paid the bill", "some blamed {x}",
)  # fmt: skip
_MENTION_QUESTIONS = (
    "list the places where {x} occurs", "where is {x} mentioned", "quote every sentence with {x}",
    "find all mentions of {x}", "which sentences mention {x}", "list the lines that mention {x}",
    "where does the name {x} occur",
)  # fmt: skip


class CodeScene:
    """Lines of code about `count` names, and the questions about them."""

    def __init__(self, lexicon: Lexicon, split: Split, count: int) -> None:
        self._lexicon = lexicon
        self._split = split
        self._count = count

    def cells(self) -> list[Statement]:
        """One statement a name; the caller plants some and asks about all."""
        stem = self._lexicon.identifier()
        names = list(
            dict.fromkeys(
                f"{self._lexicon.pick(stem, stem.split('_')[0])}_{self._lexicon.identifier()}"
                if self._lexicon.flip(0.4)
                else self._lexicon.identifier()
                for _ in range(self._count)
            )
        )
        made = [self._value(name) if self._lexicon.flip(0.55) else self._definition(name) for name in names]
        return [statement for statement in made if statement is not None]

    def _choose(self, group: str, patterns: tuple[str, ...]) -> tuple[int, str] | None:
        known = [i for i in range(len(patterns)) if split_of("code", group, str(i)) is self._split]
        if not known:
            return None
        index = known[self._lexicon.between(0, len(known) - 1)]
        return index, patterns[index]

    def _ask(self, group: str, questions: tuple[str, ...], name: str, span: tuple[int, int]) -> Ask | None:
        chosen = self._choose(group, questions)
        if chosen is None:
            return None
        question = question_text(self._lexicon, chosen[1].replace("{n}", name))
        return Ask(question, (span,), ("code", group, name.lower()), f"code/{group}/{chosen[0]}")

    def _value(self, name: str) -> Statement | None:
        lexicon = self._lexicon
        value = lexicon.pick(
            str(lexicon.between(0, 99999)), str(lexicon.between(2, 64)), f"0x{lexicon.between(16, 65535):X}",
            f"{lexicon.between(0, 9)}.{lexicon.between(1, 99)}", f'"{lexicon.invented().lower()}"',
            f'"{lexicon.file()}"', "True", f"{lexicon.between(2, 99)} * {lexicon.between(2, 1024)}",
        )  # fmt: skip
        pattern = lexicon.pick(*_VALUE_LINES)
        shown = name.upper() if "{N}" in pattern else name
        head, tail = pattern.replace("{N}", shown).replace("{n}", shown).split("{v}")
        ask = self._ask("value", _VALUE_QUESTIONS, shown, (len(head), len(head) + len(value)))
        return Statement(f"{head}{value}{tail}", (ask,), is_line=True) if ask else None

    def _definition(self, name: str) -> Statement | None:
        lexicon = self._lexicon
        arguments = ", ".join(
            lexicon.identifier() + lexicon.pick("", "=None", ": int", ": str", "=0", "=True")
            for _ in range(lexicon.between(0, 3))
        )
        result = lexicon.pick("int", "str", "None", "bool", lexicon.invented(), "list[str]", "float", "Exception")
        pattern = lexicon.pick(*_DEFINITION_LINES)
        shown = "".join(part.capitalize() for part in name.split("_")) if "{C}" in pattern else name
        first = pattern.replace("{n}", shown).replace("{C}", shown).replace("{a}", arguments).replace("{t}", result)
        indent = len(first) - len(first.lstrip())
        asks = [self._ask("define", _DEFINITION_QUESTIONS, shown, (indent, len(first)))]
        text = first
        body = " " * (indent + 4)
        if lexicon.flip(0.5):
            verb = lexicon.pick("Return", "Compute", "Load", "Check", "Send", "Print")
            tail = lexicon.pick("once", "again", "if needed", f"of {lexicon.invented()}")
            doc = f"{verb} the {lexicon.object_noun()} {tail}"
            quote = '"""' if "def" in first else "// "
            start = len(text) + 1 + len(body) + len(quote)
            text += f"\n{body}{quote}{doc}." + ('"""' if quote == '"""' else "")
            asks.append(self._ask("doc", _DOC_QUESTIONS, shown, (start, start + len(doc))))
        if lexicon.flip(0.6) and "class" not in first and "struct" not in first:
            value = lexicon.pick(
                str(lexicon.between(0, 9999)),
                lexicon.identifier(),
                f"{lexicon.identifier()} + {lexicon.between(1, 99)}",
            )
            start = len(text) + 1 + len(body) + len("return ")
            text += f"\n{body}return {value}"
            asks.append(self._ask("return", _RETURN_QUESTIONS, shown, (start, start + len(value))))
        known = tuple(ask for ask in asks if ask)
        return Statement(text, known, is_line=True) if known else None


class MentionScene:
    """One name in one to three sentences, and the request to list them all, in the order of the text."""

    def __init__(self, lexicon: Lexicon, split: Split) -> None:
        self._lexicon = lexicon
        self._split = split

    def group(self) -> tuple[list[Statement], Ask] | None:
        """The statements, to be planted in this order, and a question whose n-th span lies in the n-th of them."""
        lexicon = self._lexicon
        known = [q for q in _MENTION_QUESTIONS if split_of("mention", q) is self._split]
        if not known:
            return None
        name = lexicon.invented() if lexicon.flip(0.5) else lexicon.person()
        patterns = list(dict.fromkeys(lexicon.pick(*_MENTIONS) for _ in range(lexicon.between(1, 3))))
        texts = [pattern.replace("{x}", name) for pattern in patterns]
        texts = [text[0].upper() + text[1:] + "." for text in texts]
        core = lexicon.pick(*known).replace("{x}", name)
        ask = Ask(
            question_text(lexicon, core), tuple((0, len(text)) for text in texts), ("mention", name.lower()), "mention"
        )
        return [Statement(text, ()) for text in texts], ask
