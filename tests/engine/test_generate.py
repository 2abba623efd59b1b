"""One answer from a tiny model: what is read, what is reused, where it ends, and which text comes out when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from naive_sala import random_ids

import salalocal
from salalocal.engine.engine import Engine
from salalocal.engine.events import Done, Token
from salalocal.engine.generate import generate
from salalocal.engine.progress import Progress
from salalocal.engine.sampling import Sampling
from salalocal.engine.session import Session
from salalocal.errors import Cancelled, ContextTooLong, EngineFailure, InvalidRequest

MakeEngine = Callable[..., Engine]


class Letters:
    """Every token is one letter; `holds` tokens are kept back like bytes of an unfinished character."""

    def __init__(self, holds: int = 0) -> None:
        self._holds, self._held = holds, ""

    def push(self, token_id: int) -> str:
        self._held += chr(ord("A") + token_id)
        cut = max(0, len(self._held) - self._holds)
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text


def letters(ids: list[int]) -> str:
    return "".join(chr(ord("A") + token) for token in ids)


def run(session: Session, ids: list[int], sampling: Sampling, **options: object) -> Iterator[Progress | Token | Done]:
    arguments = {"eos_ids": (), "make_stream": Letters, **options}
    return generate(session, ids, sampling, **arguments)  # type: ignore[arg-type]


def answer(session: Session, ids: list[int], sampling: Sampling, **options: object) -> tuple[list[Token], Done]:
    *events, done = run(session, ids, sampling, **options)
    assert isinstance(done, Done)
    return [event for event in events if isinstance(event, Token)], done


@pytest.fixture
def session(make_engine: MakeEngine) -> Session:
    return make_engine().new_session()


@pytest.fixture
def greedy(make_engine: MakeEngine) -> list[int]:
    """The 12 greedy tokens after random_ids(30), one step at a time."""
    session, ids = make_engine().new_session(), []
    logits = session.prefill(random_ids(30))
    for _ in range(12):
        ids.append(int(logits.argmax()))
        logits = session.step(ids[-1])
    return ids


def test_greedy_tokens_are_those_of_stepping(session: Session, greedy: list[int]) -> None:
    tokens, done = answer(session, random_ids(30), Sampling(max_tokens=12))
    assert [token.id for token in tokens] == greedy
    assert "".join(token.text for token in tokens) == letters(greedy)
    assert done.finish_reason == "length"
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.reused_tokens) == (30, 12, 0)
    assert done.usage.prefill_seconds > 0
    assert done.usage.decode_seconds > 0


def test_progress_comes_before_tokens(session: Session) -> None:
    kinds = [type(event) for event in run(session, random_ids(4200), Sampling(max_tokens=2))]
    assert kinds == [Progress] * 3 + [Token] * 2 + [Done]


def test_the_end_mark_ends_and_is_not_counted(session: Session, greedy: list[int]) -> None:
    end = greedy[4]
    first = greedy.index(end)
    tokens, done = answer(session, random_ids(30), Sampling(), eos_ids={end})
    assert [token.id for token in tokens] == greedy[:first]
    assert (done.finish_reason, done.usage.completion_tokens) == ("stop", first)


@pytest.mark.parametrize("holds", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_stop_text_is_never_shown(session: Session, greedy: list[int], size: int, holds: int) -> None:
    text = letters(greedy)
    stop = text[5 : 5 + size]
    tokens, done = answer(
        session, random_ids(30), Sampling(max_tokens=12, stop=("never", stop)), make_stream=lambda: Letters(holds)
    )
    assert "".join(token.text for token in tokens) == text[: text.index(stop)]
    assert done.finish_reason == "stop"


def test_the_earliest_of_several_stop_texts_counts(session: Session, greedy: list[int]) -> None:
    class Whole(Letters):
        """All of it at once, after the sixth token."""

        def push(self, token_id: int) -> str:
            super().push(token_id)
            return self.flush() if len(self._held) == 6 else ""

        def __init__(self) -> None:
            super().__init__(holds=99)

    text = letters(greedy)
    stops = (text[4:6], text[2:4])
    tokens, _ = answer(session, random_ids(30), Sampling(stop=stops), make_stream=Whole)
    assert "".join(token.text for token in tokens) == text[: min(text.index(stop) for stop in stops)]


def test_half_a_stop_text_is_shown_once_it_cannot_be_one(session: Session, greedy: list[int]) -> None:
    text = letters(greedy)
    almost = text[3:6] + ("A" if text[6] != "A" else "B")
    tokens, done = answer(session, random_ids(30), Sampling(max_tokens=12, stop=(almost,)))
    assert "".join(token.text for token in tokens) == text
    assert all(token.text == "" for token in tokens[3:6]), "held back while it may become the stop text"
    assert done.finish_reason == "length"


def test_what_is_held_back_comes_out_at_the_end(session: Session, greedy: list[int]) -> None:
    tokens, done = answer(
        session, random_ids(30), Sampling(max_tokens=5, stop=(letters(greedy[4:7]),)), make_stream=lambda: Letters(2)
    )
    assert "".join(token.text for token in tokens) == letters(greedy[:5])
    assert [token.id for token in tokens] == [*greedy[:5], greedy[4]], "one more event, under the last id"
    assert done.usage.completion_tokens == 5


def test_a_longer_prompt_reuses_what_was_read_and_said(session: Session, greedy: list[int]) -> None:
    answer(session, random_ids(30), Sampling(max_tokens=12))
    assert session.token_ids == random_ids(30) + greedy[:11], "the last token was never needed"
    following = [*random_ids(30), *greedy, 1, 2, 3]
    _, done = answer(session, following, Sampling(max_tokens=1))
    assert (done.reused_tokens, done.usage.reused_tokens, done.usage.prompt_tokens) == (41, 41, 45)


def test_the_same_question_again_reads_nothing(session: Session) -> None:
    first, _ = answer(session, random_ids(30), Sampling(max_tokens=12))
    events = list(run(session, random_ids(30), Sampling(max_tokens=12)))
    assert not any(isinstance(event, Progress) for event in events)
    assert events[:-1] == first
    assert events[-1].reused_tokens == 30


def test_another_question_goes_back_to_the_documents(session: Session) -> None:
    documents = random_ids(50)
    answer(session, [*documents, 1, 2, 3], Sampling(max_tokens=4), checkpoints_at={50})
    _, done = answer(session, [*documents, 7, 8], Sampling(max_tokens=4), checkpoints_at={50})
    assert done.reused_tokens == 50


def test_documents_read_in_advance_are_a_checkpoint_too(session: Session) -> None:
    """The documents were read by `prefill`, which was told of no checkpoint; the first question's start is one."""
    documents = random_ids(50)
    session.prefill(documents)
    answer(session, [*documents, 1, 2, 3], Sampling(max_tokens=4), checkpoints_at={50})
    _, done = answer(session, [*documents, 7, 8], Sampling(max_tokens=4), checkpoints_at={50})
    assert done.reused_tokens == 50


def test_cancel_while_reading_keeps_what_was_read(session: Session) -> None:
    cancel, ids = threading.Event(), random_ids(4200)
    events = run(session, ids, Sampling(max_tokens=3), cancel=cancel)
    next(events)
    cancel.set()
    with pytest.raises(Cancelled):
        next(events)
    assert session.length == 2048
    _, done = answer(session, ids, Sampling(max_tokens=3))
    assert done.reused_tokens == 2048


def test_cancel_while_answering_ends_the_answer(session: Session, greedy: list[int]) -> None:
    cancel, tokens = threading.Event(), []
    for event in run(session, random_ids(30), Sampling(), cancel=cancel, make_stream=lambda: Letters(1)):
        if isinstance(event, Token):
            tokens.append(event)
            if len(tokens) == 4:
                cancel.set()
    assert isinstance(event, Done)
    assert (event.finish_reason, event.usage.completion_tokens) == ("cancelled", 4)
    assert "".join(token.text for token in tokens) == letters(greedy[:4])


def test_an_abandoned_answer_leaves_the_session_usable(session: Session, greedy: list[int]) -> None:
    events = run(session, random_ids(30), Sampling())
    next(event for event in events if isinstance(event, Token))
    events.close()  # type: ignore[attr-defined]
    tokens, _ = answer(session, random_ids(30), Sampling(max_tokens=12))
    assert [token.id for token in tokens] == greedy


def test_a_full_session_ends_the_answer(session: Session) -> None:
    session.max_tokens = 33
    tokens, done = answer(session, random_ids(30), Sampling())
    # Three more fit into the cache, and the last of their logits gives one token that is never read.
    assert (len(tokens), done.finish_reason, session.length) == (4, "length", 33)
    with pytest.raises(ContextTooLong):
        answer(session, random_ids(34), Sampling())
    assert session.length == 33, "a prompt that does not fit forgets nothing"


def test_an_empty_prompt_is_refused(session: Session) -> None:
    with pytest.raises(InvalidRequest, match="prompt is empty"):
        answer(session, [], Sampling())


def test_nan_logits_stop_the_answer(session: Session) -> None:
    session.prefill(random_ids(30))
    assert session.logits is not None
    session.logits[3] = float("nan")
    with pytest.raises(EngineFailure, match="NaN"):
        answer(session, random_ids(30), Sampling())


def test_the_seed_repeats_an_answer(session: Session) -> None:
    def tokens(seed: int) -> list[int]:
        found, _ = answer(session, random_ids(30), Sampling(temperature=2.0, seed=seed, max_tokens=20))
        return [token.id for token in found]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_an_engine_without_a_tokenizer_says_so(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for call in (
        lambda: engine.encode("text"),
        lambda: list(engine.generate(engine.new_session(), [1], Sampling())),
        lambda: list(engine.chat(engine.new_session(), [salalocal.Message("user", "?")], [], Sampling())),
    ):
        with pytest.raises(InvalidRequest, match=r"has no tokenizer\.json"):
            call()
