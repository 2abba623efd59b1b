"""`salalocal chat` without a terminal: what is kept, what is reused, what ends it."""

from __future__ import annotations

import signal
from pathlib import Path

from scripted import Run, ScriptedEngine

import salalocal


def press_ctrl_c_once(engine: ScriptedEngine, hook: str, at: int) -> None:
    """Ctrl-C at the `at`-th call of the hook, never again."""
    calls = []

    def press() -> None:
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)

    setattr(engine, hook, press)


def figures(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("reused")]


def test_documents_are_read_once(run: Run, engine: ScriptedEngine, book: Path) -> None:
    outcome = run("chat", book, lines=["When was it built?", "By whom?"])
    assert outcome.code == 0
    assert outcome.out.count("The harbour was built in 1893.\n") == 2
    assert figures(outcome.err) == ["reused 40 · read 5 · 12.0 tokens/s", "reused 45 · read 10 · 12.0 tokens/s"]
    assert [message.role for message in engine.prompts[1]] == ["user", "assistant", "user"]


def test_new_forgets_the_turns_and_keeps_what_was_read(run: Run, engine: ScriptedEngine, book: Path) -> None:
    outcome = run("chat", book, lines=["When was it built?", "/new", "By whom?"])
    assert figures(outcome.err)[1].startswith("reused 41 ")  # the document, and "<user>"
    assert len(engine.prompts[1]) == 1


def test_docs_lists_files_and_what_was_read(run: Run, engine: ScriptedEngine, book: Path) -> None:
    del engine
    outcome = run("chat", book, lines=["/docs"])
    lines = outcome.out.splitlines()[-2:]
    assert lines[0].split() == ["40", "harbour.md"]
    assert lines[1].split() == ["40", "in", "all;", "the", "session", "holds", "40", "of", "100,000"]


def test_help_and_unknown_commands(run: Run, engine: ScriptedEngine) -> None:
    outcome = run("chat", lines=["/help", "/frobnicate", "/etc/passwd holds what?", "/quit", "not asked"])
    assert all(command in outcome.out for command in ("/docs", "/new", "/quit"))
    assert outcome.error_lines == ["error: there is no command /frobnicate; /help lists the commands"]
    assert [prompt[-1].content for prompt in engine.prompts] == ["/etc/passwd holds what?"]


def test_ctrl_c_stops_the_answer_and_keeps_it(run: Run, engine: ScriptedEngine, book: Path) -> None:
    press_ctrl_c_once(engine, "on_word", at=2)
    outcome = run("chat", book, lines=["When was it built?", "Go on."])
    assert outcome.code == 0
    assert "The harbour\n" in outcome.out
    assert [message.content for message in engine.prompts[1]] == ["When was it built?", "The harbour", "Go on."]


def test_ctrl_c_while_reading_keeps_what_was_read(run: Run, engine: ScriptedEngine, book: Path) -> None:
    press_ctrl_c_once(engine, "on_chunk", at=3)
    outcome = run("chat", book, lines=["When was it built?"])
    assert outcome.code == 0
    assert "12 of 40 tokens" in outcome.err
    assert figures(outcome.err) == ["reused 12 · read 33 · 12.0 tokens/s"]


def test_ctrl_c_before_the_first_word_leaves_no_half_turn(run: Run, engine: ScriptedEngine, book: Path) -> None:
    press_ctrl_c_once(engine, "on_chunk", at=11)  # 10 chunks are the document; the question takes 2
    outcome = run("chat", book, lines=["When was it built?", "And now?"])
    assert "stopped after 44 tokens; what was read is kept" in outcome.err
    assert [message.content for message in engine.prompts[1]] == ["And now?"]


def test_a_question_that_does_not_fit_ends_nothing(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.limit = 50
    outcome = run("chat", book, lines=["one " * 20, "short?"])
    assert outcome.code == 0
    assert " tokens are needed and 50 fit" in outcome.error_lines[0]
    assert outcome.out.endswith("The harbour was built in 1893.\n")


def test_documents_that_do_not_fit_are_refused_at_the_start(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.limit = 30
    outcome = run("chat", book, lines=["never asked"])
    assert outcome.code == 2
    assert "the largest: harbour.md (40)" in outcome.error_lines[0]
    assert engine.prompts == []


def test_beyond_the_trained_length_is_said_once(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.trained = 30
    note = "40 tokens are more than it was trained at"
    assert run("chat", book, lines=["When was it built?"]).err.count(note) == 1
    assert "44 tokens are more than it was trained at" in run("ask", book, "When was it").err


def test_an_answer_has_its_place_or_all_that_was_read(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.answer = "1893"
    engine.passages = (
        salalocal.ReadPassage("The harbour was built in 1893.", salalocal.Place("harbour.md", line=2), 0.62),
        salalocal.ReadPassage("Seals were counted.", salalocal.Place("coast.pdf", page=7), 0.05),
    )
    place = "harbour.md, line 2  “The harbour was built in 1893.”"
    plain = run("chat", book, lines=["When?", "Really?"]).out
    assert plain.count(f"1893\n  ↳ {place}\n") == 2
    assert "Seals" not in plain
    listed = run("chat", "--evidence", book, lines=["When?", "Really?"]).out
    passages = f"  • {place}  62 %\n  • coast.pdf, page 7  “Seals were counted.”  5 %\n"
    assert listed.count(f"1893\nread for this answer:\n{passages}") == 2
    assert "↳" not in listed


def test_evidence_without_documents_is_one_note(run: Run, engine: ScriptedEngine) -> None:
    outcome = run("chat", "--evidence", lines=["Hello"])
    assert outcome.out.endswith(f"{engine.answer}\n")
    assert outcome.err.count("no sentence of a document stands out") == 1


def test_without_documents(run: Run, engine: ScriptedEngine) -> None:
    outcome = run("chat", lines=["Hello", "/docs"])
    assert outcome.code == 0
    assert "no documents" in outcome.err
    assert len(engine.prompts) == 1
