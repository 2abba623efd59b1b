"""`salalocal evaluate` as it is typed: tables, JSON, the picture, and one line for every wrong input."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from byte_engine import VOCABULARY, make_engine
from naive_sala import tiny_config, write_model

from salalocal.cli import main
from salalocal.engine.engine import Engine
from salalocal.engine.session import Session

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_engine(folder)
    return folder


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    rows = [
        {"fact": f"Quay {n} is {n} m long.", "question": f"How long is quay {n}?", "answers": [f"{n} m"]} for n in "357"
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*rows, {"question": "Who owns it?"}]), "utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run_command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *map(str, words)])
        captured = capsys.readouterr()
        assert "\x1b" not in captured.out + captured.err
        return int(ended.value.code or 0), captured.out, captured.err

    return run_command


def test_facts_as_table_and_as_json(run: Run, model: Path, facts: Path) -> None:
    code, out, _ = run("facts", facts, "--length", "1K,2K", "--model", model, "--max-tokens", 2)
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split()[:2] == ["length", "answered"]
    assert [line.split()[0] for line in lines] == ["1K", "2K"]
    assert "0.0 [0-56] of 3" in lines[0]
    code, out, _ = run("facts", facts, "--length", "1K", "--model", model, "--max-tokens", 2, "--json")
    assert code == 0
    (cell,) = json.loads(out)["cells"]
    assert (cell["length"], cell["n"], cell["answered"]["of"], cell["not_in_text_recognised"]["of"]) == (1024, 4, 3, 1)
    assert [question["line"] for question in cell["questions"]] == [1, 2, 3, 4]
    assert 1024 * 0.98 <= cell["read_tokens"] <= 1024


def test_count_asks_fewer_rows(run: Run, model: Path, facts: Path) -> None:
    _, out, _ = run("facts", facts, "--length", "1K", "--model", model, "--max-tokens", 1, "--count", 2, "--json")
    assert json.loads(out)["cells"][0]["n"] == json.loads(out)["rows"] == 2


def test_ruler_as_table_json_and_picture(run: Run, model: Path, tmp_path: Path) -> None:
    png = tmp_path / "heat.png"
    words = ("ruler", "--length", "4K", "--tasks", "niah_single_1,qa_1", "--count", 2, "--model", model)
    code, out, err = run(*words, "--png", png)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        model.name,
        "niah_single_1",
        "qa_1",
        "mean",
        "MiniCPM-SALA,",
    ]
    assert "mean of 2" in out
    assert "89.4 at 128K, 87.1 at 512K, 86.3 at 1M, 81.6 at 2M" in err
    assert "arXiv 2602.11761" in err
    assert png.read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(*words, "--json")
    data = json.loads(out)
    assert code == 0
    assert data["published"]["means"] == {"131072": 89.4, "524288": 87.1, "1048576": 86.3, "2097152": 81.6}
    assert [(cell["task"], len(cell["samples"])) for cell in data["cells"]] == [("niah_single_1", 2), ("qa_1", 2)]
    assert data["means"] == {"4096": sum(cell["score"] for cell in data["cells"]) / 2}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("facts", "FACTS", "--length", "8Q"), "'8Q' is no length"),
        (("facts", "FACTS", "--length", "100"), "outside 1K to 2M"),
        (("facts", "FACTS", "--length", "3M"), "outside 1K to 2M"),
        (("facts", "/nowhere.jsonl"), "/nowhere.jsonl: cannot be read"),
        (("facts", "BAD"), 'line 1: field "question"'),
        (("facts", "FACTS", "--count", "0"), "--count"),
        (("ruler", "--length", "1K"), "outside 4K to 2M"),
        (("ruler", "--tasks", "niah"), "there is no task 'niah'"),
        (("ruler", "--tasks", "vt", "--png", "x.png"), "add one of niah_single_1"),
        (("ruler", "--png", "x.jpg"), "ends in .png"),
        (("ruler", "--png", "/nowhere/x.png"), "/nowhere: there is no such folder"),
        (("ruler", "--layout", "poem"), "--layout"),
        (("ruler", "--tasks", "cwe", "--length", "4K"), "cwe: takes at least"),
        (("facts", "FACTS", "--model", "/nowhere"), "/nowhere"),
    ],
)
def test_wrong_input_is_one_line(
    run: Run, model: Path, facts: Path, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"fact": "x", "answers": ["y"]}', "utf-8")
    given = [{"FACTS": str(facts), "BAD": str(bad)}.get(word, word) for word in words]
    code, out, err = run(*given, *(() if "--model" in given else ("--model", model)))
    assert code == 2
    assert out == ""
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_without_tokenizer_is_refused(run: Run, facts: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "bare", tiny_config("sls", vocab_size=VOCABULARY))
    code, _, err = run("facts", facts, "--length", "1K", "--model", tmp_path / "bare")
    assert code == 2
    assert "tokenizer" in err


@pytest.mark.parametrize("verb", ["facts", "ruler"])
def test_an_interrupt_ends_the_run_with_130(
    run: Run, model: Path, facts: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    new_session = Engine.new_session

    def press(self: Engine, record_selection: bool = False) -> Session:
        signal.raise_signal(signal.SIGINT)
        return new_session(self, record_selection)

    monkeypatch.setattr(Engine, "new_session", press)
    words = ["facts", facts, "--length", "1K"] if verb == "facts" else ["ruler", "--tasks", "vt", "--length", "4K"]
    code, out, err = run(*words, "--model", model)
    assert code == 130
    assert out == ""
    assert err == "stopped; what is not shown above is lost\n"
