"""RULER over a tiny random model, layouts of its prompts, and the picture."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from byte_engine import make_engine
from PIL import Image

from salalocal.engine.engine import Engine
from salalocal.engine.events import Token
from salalocal.engine.sampling import Sampling
from salalocal.engine.session import Session
from salalocal.errors import Cancelled, ContextTooLong, InvalidRequest
from salalocal.evaluate.heatmap import depth_cells, depth_rows, score_colour, write_heatmap
from salalocal.evaluate.ruler.run import RulerProgress, evaluate_ruler, mean_score, prompt_ids
from salalocal.evaluate.ruler.sample import Sample
from salalocal.evaluate.ruler.tasks import TASKS

SAMPLE = Sample("Remember.", "The quay is <|im_end|> long.", "How is it?", " It is", ("long",), "all", 8)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return make_engine(tmp_path_factory.mktemp("tiny"))


def test_message_layout_begins_the_answer(engine: Engine) -> None:
    text = engine.tokenizer.decode(prompt_ids(engine, SAMPLE, "message"), with_special=True)
    assert text == (
        "<|im_start|>user\nRemember.\nThe quay is <|im_end|> long.\nHow is it?<|im_end|>\n<|im_start|>assistant\n It is"
    )
    # What the text says about turns is text.
    assert sum(token in engine.tokenizer.special_ids for token in prompt_ids(engine, SAMPLE, "message")) == 3


def test_document_layout_is_that_of_ask(engine: Engine) -> None:
    text = engine.tokenizer.decode(prompt_ids(engine, SAMPLE, "document"), with_special=True)
    assert "File: text.txt\n\nThe quay is <|im_end|> long." in text
    assert text.endswith("Question: How is it?<|im_end|>\n<|im_start|>assistant\n")


def test_a_run_scores_what_the_model_says(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, generate = list[list[int]](), engine.generate

    def instead(
        session: Session, ids: list[int], sampling: Sampling, cancel: threading.Event | None = None
    ) -> Iterator[object]:
        assert sampling.max_tokens == 30
        prompts.append(list(ids))
        # Half of the chain of variables: the first three of five names that are assigned.
        names = [part.split(" = ")[0] for part in engine.tokenizer.decode(ids).split("VAR ") if " = " in part]
        for event in generate(session, ids, Sampling(max_tokens=1), cancel):
            yield Token(event.id, ", ".join(names[5:8])) if isinstance(event, Token) else event

    monkeypatch.setattr(engine, "generate", instead)
    cells = evaluate_ruler(engine, ["vt"], [4096], count=2, seed=1)
    assert [cell.score for cell in cells] == [pytest.approx(60.0)]
    assert mean_score(cells, 4096) == pytest.approx(60.0)
    assert mean_score(cells, 8192) is None
    assert [sample.prompt_tokens for sample in cells[0].samples] == [len(ids) for ids in prompts]
    assert all(4096 * 0.98 <= len(ids) + 30 <= 4096 for ids in prompts)
    assert prompts[0] != prompts[1]


def test_all_thirteen_run_at_their_length(engine: Engine) -> None:
    told = list[RulerProgress]()
    tasks = [task for task in TASKS if task != "cwe"]  # too long at 4K for a tokenizer of bytes
    cells = evaluate_ruler(engine, tasks, [4096], count=1, on_progress=told.append)
    assert [cell.task for cell in cells] == tasks
    assert all(0 <= cell.score <= 100 for cell in cells)
    assert {step.task for step in told if step.read is not None} == set(tasks)
    assert "niah_single_1 at 4K, 1 of 1" in str(told[0])
    with pytest.raises(InvalidRequest, match="cwe"):
        evaluate_ruler(engine, ["vt", "cwe"], [4096], count=1, on_cell=lambda _: pytest.fail("began to read"))


def test_cancelling_and_lengths_that_do_not_fit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        evaluate_ruler(engine, ["vt"], [4096], count=1, cancel=cancel)
    monkeypatch.setattr(engine, "max_context_tokens", lambda: 5000)
    with pytest.raises(ContextTooLong, match="8K was asked for and 5,000"):
        evaluate_ruler(engine, ["vt"], [4096, 8192])


def test_picture_shows_scores_by_depth_and_length(tmp_path: Path) -> None:
    cells = depth_cells([(0, 0.05, 100.0), (0, 0.09, 50.0), (1, 0.999, 0.0), (1, 1.0, 0.0)])
    assert cells == {(0, 0): (75.0, 2), (9, 1): (0.0, 2)}
    path = tmp_path / "heat.png"
    write_heatmap(path, "needles", ["8K", "1M"], depth_rows(), cells)
    with Image.open(path) as image:
        assert image.format == "PNG"
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 16)}
    assert score_colour(75.0) in colours
    assert score_colour(0.0) in colours
    assert score_colour(100.0) not in colours
    assert [path.name for path in tmp_path.iterdir()] == ["heat.png"]


def test_colours_differ_and_keep_to_the_scale() -> None:
    assert len({score_colour(score) for score in range(0, 101, 5)}) == 21
    assert score_colour(-1.0) == score_colour(0.0)
    assert score_colour(101.0) == score_colour(100.0)


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"none.*cannot be written"):
        write_heatmap(tmp_path / "none" / "heat.png", "needles", ["8K"], depth_rows(), {})
