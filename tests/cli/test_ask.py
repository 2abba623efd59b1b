"""`salalocal ask`: what goes to which stream, how it ends, and what it refuses."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import Run, ScriptedEngine

import salalocal
from salalocal.times import Times


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def after(count: int):
    """A hook that presses Ctrl-C the `count`-th time it is called."""
    calls = []

    def hook() -> None:
        calls.append(1)
        if len(calls) == count:
            press_ctrl_c()

    return hook


FOUND = salalocal.QuoteMatch("word10 word11", salalocal.Place("harbour.md", line=2), 1.0, True)
INVENTED = salalocal.QuoteMatch("never written", None, 0.0, True)
UNQUOTED_MISS = salalocal.QuoteMatch("only said", None, 0.0, False)


def test_answer_then_places_then_figures(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.quotes = (FOUND, INVENTED, UNQUOTED_MISS)
    outcome = run("ask", "--model", "smollm2", book, "When was it built?")
    assert outcome.code == 0
    assert outcome.out == (
        "The harbour was built in 1893.\n"
        "  ↳ harbour.md, line 2  “word10 word11”\n"
        "  ↳ not in the text  “never written”\n"
    )
    assert outcome.err.splitlines()[-1] == "smollm2 · reused 0 · read 45 · 12.0 tokens/s"
    assert [message.role for message in engine.prompts[0]] == ["user"]


def test_what_is_only_similar_is_shown_in_the_documents_words(run: Run, engine: ScriptedEngine, book: Path) -> None:
    place = salalocal.Place("harbour.md", line=3)
    engine.quotes = (salalocal.QuoteMatch("word20 word99", place, 0.9, True, "word20\x1b word21"), FOUND)
    outcome = run("ask", book, "When?")
    assert outcome.out.splitlines()[1:] == [
        "  ↳ harbour.md, line 3  “word20 word21” similar, not word for word",
        "  ↳ harbour.md, line 2  “word10 word11”",
    ]
    data = run("ask", "--json", book, "When?").data["quotes"]
    assert [quote["found"] for quote in data] == ["word20\x1b word21", None]
    assert data[0]["text"] == "word20 word99"


def test_options_reach_the_engine(run: Run, engine: ScriptedEngine, book: Path) -> None:
    options = [
        "--model",
        "other",
        "--device",
        "cpu",
        "--dtype",
        "float64",
        "--prefill",
        "int8",
        "--gpu-memory",
        "7.25GiB",
        "--kv",
        "fp8",
    ]
    options += ["--max-tokens", "3", "--temperature", "0.5", "--seed", "7"]
    outcome = run("ask", *options, book, "When?")
    assert engine.loaded_as == ("other", "cpu", "float64", "int8", 29 << 28, "fp8")
    assert engine.samplings == [salalocal.Sampling(temperature=0.5, seed=7, max_tokens=3)]
    assert outcome.out == "The harbour was\n"
    assert "ended at 3 tokens; --max-tokens allows more" in outcome.err


def test_a_size_that_is_none_is_refused_before_anything_is_read(run: Run, engine: ScriptedEngine) -> None:
    outcome = run("ask", "--gpu-memory", "8", "nowhere.md", "When?")
    assert (outcome.code, engine.loaded_as) == (2, ())
    assert "--gpu-memory is '8'; give a size as in 8GiB or 24GB" in outcome.err


def test_json_is_one_object_on_stdout(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.quotes = (FOUND, INVENTED)
    outcome = run("ask", "--json", book, "When was it built?")
    assert outcome.data["answer"] == "The harbour was built in 1893."
    assert outcome.data["finish_reason"] == "stop"
    assert outcome.data["quotes"][0]["place"] == {"file": "harbour.md", "page": None, "line": 2}
    assert outcome.data["quotes"][1]["place"] is None
    assert outcome.data["documents"] == [{"name": "harbour.md", "files": ["harbour.md"], "skipped": []}]
    assert outcome.data["usage"]["prompt_tokens"] == 45


BUILT = salalocal.ReadPassage("The harbour was built in 1893.", salalocal.Place("harbour.md", line=2), 0.62)
SEALS = salalocal.ReadPassage("Seals  were\x1b counted.", salalocal.Place("coast.pdf", page=7), 0.054)


def test_evidence_lists_what_was_read_behind_the_quotes(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.quotes = (FOUND,)
    engine.passages = (BUILT, SEALS)
    assert run("ask", "--evidence", book, "When was it built?").out == (
        "The harbour was built in 1893.\n"
        "  ↳ harbour.md, line 2  “word10 word11”\n"
        "read for this answer:\n"
        "  • harbour.md, line 2  “The harbour was built in 1893.”  62 %\n"
        "  • coast.pdf, page 7  “Seals were counted.”  5 %\n"
    )
    assert "read for this answer" not in run("ask", book, "When was it built?").out


def test_a_long_passage_is_shortened(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.passages = (salalocal.ReadPassage("long " * 100, BUILT.place, 0.5),)
    (line,) = run("ask", "--evidence", book, "When?").out.splitlines()[2:]
    assert line.startswith("  • harbour.md, line 2  “long long")
    assert line.endswith("…”  50 %")
    assert 150 <= len(line.split("“")[1].split("”")[0]) <= 160


def test_where_nothing_stands_out_evidence_says_so_on_stderr(run: Run, engine: ScriptedEngine, book: Path) -> None:
    outcome = run("ask", "--evidence", book, "When?")
    assert outcome.out == f"{engine.answer}\n"
    assert outcome.err.splitlines()[0] == "read for this answer: no sentence of a document stands out"


@pytest.mark.parametrize("flags", [["--json"], ["--json", "--evidence"]])
def test_json_always_has_the_passages(run: Run, engine: ScriptedEngine, book: Path, flags: list[str]) -> None:
    assert run("ask", *flags, book, "When?").data["passages"] == []
    engine.passages = (BUILT, SEALS)
    assert run("ask", *flags, book, "When?").data["passages"] == [
        {
            "text": "The harbour was built in 1893.",
            "share": 0.62,
            "place": {"file": "harbour.md", "page": None, "line": 2},
        },
        {"text": "Seals  were\x1b counted.", "share": 0.054, "place": {"file": "coast.pdf", "page": 7, "line": None}},
    ]


PLACE_LINE = "  ↳ harbour.md, line 2  “The harbour was built in 1893.”"
ANSWERS_WITH_A_PLACE = {
    "some words": "built in 1893",
    "in capitals": "BUILT in 1893",
    "between blanks": " \n 1893 ",
    "with a full stop": "In 1893.",
    "in two lines": "built\nin 1893",
}
WITHOUT_A_PLACE = {
    "too small a share": ("1893", 0.249, ()),
    "other words": ("1894", 0.9, ()),
    "the words in another order": ("1893 in", 0.9, ()),
    "more than the passage": ("built in 1893, or later", 0.9, ()),
    "part of a word": ("arbour", 0.9, ()),
    "nothing": (" ", 0.9, ()),
    "only a sign": (".", 0.9, ()),
    "a quote has its own place": ("1893", 0.9, (FOUND,)),
    "a quote is not in the text": ("1893", 0.9, (INVENTED,)),
}


@pytest.mark.parametrize("share", [0.25, 0.9])
@pytest.mark.parametrize("answer", ANSWERS_WITH_A_PLACE.values(), ids=ANSWERS_WITH_A_PLACE.keys())
def test_a_short_answer_gets_the_passage_it_was_read_from(
    run: Run, engine: ScriptedEngine, book: Path, answer: str, share: float
) -> None:
    engine.answer = answer
    engine.passages = (replace(BUILT, share=share), SEALS)
    # Blanks in front are the text's, not the answer's.
    assert run("ask", book, "When?").out == f"{answer.lstrip()}\n{PLACE_LINE}\n"
    listed = run("ask", "--evidence", book, "When?").out
    assert "↳" not in listed
    assert "  • harbour.md, line 2" in listed


@pytest.mark.parametrize(("answer", "share", "quotes"), WITHOUT_A_PLACE.values(), ids=WITHOUT_A_PLACE.keys())
def test_no_place_is_guessed(
    run: Run,
    engine: ScriptedEngine,
    book: Path,
    answer: str,
    share: float,
    quotes: tuple[salalocal.QuoteMatch, ...],
) -> None:
    engine.answer, engine.quotes = answer, quotes
    engine.passages = (replace(BUILT, share=share),)
    assert BUILT.text not in run("ask", book, "When?").out


def test_only_the_passage_read_most_can_be_the_place(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.answer = "1893"
    engine.passages = (replace(SEALS, share=0.4), replace(BUILT, share=0.3))
    assert run("ask", book, "When?").out == "1893\n"


def test_the_answer_is_seen_in_its_place_also_far_behind_in_it(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.answer = "in 1893."
    engine.passages = (replace(BUILT, text="early " * 40 + "it was built in 1893, and " + "later " * 20),)
    words = run("ask", book, "When?").out.split("“")[1].split("”")[0]
    assert "it was built in 1893, and later" in words
    assert words.startswith("…early")
    assert words.endswith("later…")
    assert len(words) <= 160


def test_control_characters_of_an_answer_stay_out_of_the_terminal(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.answer = "red \x1b[31malert\x07 \x9b2J\x7f end"
    outcome = run("ask", book, "What?")
    assert outcome.out == "red [31malert 2J end\n"
    assert run("ask", "--json", book, "What?").data["answer"] == engine.answer


def test_ctrl_c_in_the_answer_keeps_what_was_said(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.on_word = after(3)
    outcome = run("ask", book, "When was it built?")
    assert outcome.code == 130
    assert outcome.out == "The harbour was\n"
    assert "stopped" in outcome.err


def test_ctrl_c_while_reading(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.on_chunk = after(2)
    outcome = run("ask", book, "When was it built?")
    assert outcome.code == 130
    assert outcome.out == ""
    assert outcome.err.splitlines() == ["stopped while reading, after 8 tokens"]


def test_the_third_ctrl_c_does_not_wait_for_the_engine(run: Run, engine: ScriptedEngine, book: Path) -> None:
    pressed = []

    def hook() -> None:
        for press in range(3):
            pressed.append(press)
            press_ctrl_c()
        raise AssertionError("the engine went on")

    engine.on_chunk = hook
    assert run("ask", book, "When was it built?").code == 130
    assert pressed == [0, 1, 2]


def test_what_is_to_be_expected_is_said_before_reading(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.times = Times(125.0, 30.0)
    said: list[str] = []
    engine.on_chunk = lambda: said.append("read")
    outcome = run("ask", book, "When?")
    assert "42 tokens: by this machine's rates they are read in about 2 min 05 s" in outcome.err
    engine.limit = 30
    refused = run("ask", book, "When?")
    assert refused.code == 2
    assert "by this machine's rates" not in refused.err
    assert len(said) == 11


def test_too_long_names_the_nearest_setting(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.limit, engine.remedy = 30, "packed ('salalocal quantize --format int4') it fits"
    outcome = run("ask", book, "When?")
    assert outcome.code == 2
    assert outcome.error_lines[0].endswith("harbour.md (40); packed ('salalocal quantize --format int4') it fits")


def test_too_long_names_both_numbers_and_what_to_drop(
    run: Run, engine: ScriptedEngine, book: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small.txt"
    small.write_text("two words", encoding="utf-8")
    engine.limit = 30
    outcome = run("ask", small, book, "When?")
    assert outcome.code == 2
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1
    assert outcome.error_lines == [
        "error: 44 tokens are needed and 30 fit: leave out at least 14; the largest: harbour.md (40), small.txt (2)"
    ]


REFUSED = {
    "no such file": (["ask", "missing.md", "What?"], "missing.md"),
    "nothing at all": (["ask"], "Missing argument 'QUESTION'"),
    "no document": (["ask", "What?"], "Missing argument 'PATH'"),
    "no question": (["ask", "{book}"], "the last word must be the question"),
    "a very long question": (["ask", "{book}.none", "why " * 2000], "harbour.md.none"),
    "a long name": (["ask", "{book}.none", "y" * 600], "harbour.md.none"),
    "question is empty": (["ask", "{book}", "  "], "the question is empty"),
    "question forgotten": (["ask", "{book}", "{book}"], "the last word must be the question"),
    "unknown option": (["ask", "--frobnicate", "{book}", "What?"], "--frobnicate"),
    "device out of range": (["ask", "--device", "tpu", "{book}", "What?"], "'tpu'"),
    "answer of no tokens": (["ask", "--max-tokens", "0", "{book}", "What?"], "--max-tokens"),
    "temperature is NaN": (
        ["ask", "--temperature", "nan", "{book}", "What?"],
        "from 0 to 100, not nan",
    ),
    "temperature too high": (
        ["ask", "--temperature", "101", "{book}", "What?"],
        "from 0 to 100, not 101",
    ),
    "temperature is a word": (["ask", "--temperature", "hot", "{book}", "What?"], ": it must be a number; 'salalocal"),
    "part of a token": (["ask", "--max-tokens", "1.5", "{book}", "What?"], ": it must be a whole number; 'salalocal"),
    "seed below zero": (["ask", "--seed", "-1", "{book}", "What?"], "it must be at least 0; 'salalocal"),
    "question without marks": (["ask", "{book}", "When", "did", "it", "burn"], "put the whole question in quotation"),
    "second file is missing": (["ask", "{book}", "none.md", "What?"], "none.md: there is no such file or folder\n"),
    "unknown verb": (["aks", "{book}"], "Did you mean 'ask'? 'salalocal --help' explains"),
}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("words", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_one_line(run: Run, book: Path, words: list[str], named: str) -> None:
    outcome = run(*[word.format(book=book) for word in words])
    assert outcome.code == 2
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("error: ")
    assert named in outcome.err


def test_a_folder_without_text_is_refused(run: Run, engine: ScriptedEngine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = run("ask", tmp_path / "empty", "What?")
    assert outcome.code == 2
    assert engine.loaded_as == (), "the model must not be loaded before the documents are known to be good"
