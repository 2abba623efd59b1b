"""A loaded model and what it can be asked to do: sessions, encoding, answers. Knows no model files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from salalocal import machine
from salalocal.cache.manifest import ModelIdentity, read_manifest
from salalocal.cache.saved_session import check_model
from salalocal.cache.session_cache import SessionCache
from salalocal.cache.tiered_store import TieredStore
from salalocal.config import ModelConfig
from salalocal.documents import Document
from salalocal.engine.closer_look import CloserLook, Source
from salalocal.engine.devices import device_name
from salalocal.engine.events import Done, Evidence, Token
from salalocal.engine.generate import generate
from salalocal.engine.out_of_memory import available_bytes
from salalocal.engine.progress import Progress
from salalocal.engine.sampling import Sampling
from salalocal.engine.session import Session
from salalocal.engine.tally import AttentionTally
from salalocal.errors import Cancelled, ContextTooLong, DoesNotFit, InvalidRequest
from salalocal.evidence import QuoteIndex, read_passages
from salalocal.forecast import Place, kv_away, make_plan
from salalocal.model.network import Network
from salalocal.planner import Footprint
from salalocal.saved_size import CHECKPOINT_EVERY_TOKENS
from salalocal.times import Times, predict
from salalocal.tokenizer import Message, Prompt, Tokenizer
from salalocal_quant import PackedWeight, PlanesWeight


class Engine:
    """A model ready to read and answer. Made by `salalocal.load`; one request at a time.

    Args:
        network: weights.
        tokenizer: None for a folder without one; such an engine works with token ids only.
        sizes: bytes per token and session, for refusing what does not fit.
        default_chunk: tokens per prefill chunk.
        name: the model's, for messages.
        fingerprint: of its files; a session saved by one model is not restored by another.
        closer_look_tokens: how much of long documents `chat` reads again before it answers; 0: nothing.
        tiers: where K/V is in host memory; None for K/V on the device.
        prefill: how long chunks multiply packed matrices, as for `load`.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer | None,
        sizes: Footprint,
        default_chunk: int,
        name: str,
        fingerprint: str,
        closer_look_tokens: int = 0,
        tiers: TieredStore | None = None,
        prefill: str = "full",
    ) -> None:
        self._network = network
        self._tokenizer = tokenizer
        self._sizes = sizes
        self._default_chunk = default_chunk
        self._tiers = tiers
        self._prefill = prefill
        self.name = name
        self._identity = ModelIdentity(name, fingerprint, str(network.dtype).removeprefix("torch."))
        self.closer_look_tokens = closer_look_tokens
        self._close: Session | None = None
        self._indexed: tuple[tuple[Document, ...], QuoteIndex] | None = None

    @property
    def config(self) -> ModelConfig:
        """Sizes and switches of the model."""
        return self._network.config

    @property
    def network(self) -> Network:
        """The weights, for what measures them."""
        return self._network

    @property
    def default_chunk(self) -> int:
        """Tokens per prefill chunk where a call names none."""
        return self._default_chunk

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._network.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self._network.dtype

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; raises InvalidRequest where the model folder has none."""
        if self._tokenizer is None:
            raise InvalidRequest(f"{self.name} has no tokenizer.json; only token ids can be used with it")
        return self._tokenizer

    @property
    def weight_bytes(self) -> int:
        """Bytes of the resident weights."""
        return self._network.nbytes

    @property
    def kv(self) -> str:
        """How K and V are kept in host memory, as `load` was told; "full" where they are on the device."""
        return "full" if self._tiers is None else self._tiers.kv

    def packing_note(self) -> str | None:
        """A sentence where the model's files hold packed weights: whether they stay packed in memory."""
        if self.config.quantization is None:
            return None
        if self._is_packed:
            return "the weights stay packed in memory"
        return f"the packed weights were unpacked to {str(self.dtype).removeprefix('torch.')} when they were read"

    @property
    def _is_packed(self) -> bool:
        return any(isinstance(weight, PackedWeight | PlanesWeight) for weight in self._network.matrices)

    def expected_times(self, tokens: int) -> Times | None:
        """How long reading a prompt of `tokens` takes, and how fast the answer then comes.

        None where `salalocal bench machine` was not run on this device, or where it could not measure what this takes.
        """
        known = machine.recall(self.device.type, device_name(self.device))
        if known is None or known.dtype != self._identity.dtype:
            return None
        rates, away, config, item_bytes = known.rates, None, self.config, self.dtype.itemsize
        if self._prefill != "full" and self._prefill not in rates.narrow_flop:
            return None
        if self._tiers is not None:
            if rates.bus is None:
                return None
            away = kv_away(config, item_bytes, self._tiers.shares, self.kv)
        unpacked, chunk = not self._is_packed, self.default_chunk
        return predict(config, rates, tokens, chunk, item_bytes, unpacked=unpacked, prefill=self._prefill, away=away)

    def way_out(self, tokens: int) -> str | None:
        """The nearest setting in which this model would hold so many tokens here, for people; None: there is none."""
        on_gpu = self.device.type == "cuda"
        # What this engine's weights take there would be free again; an embedding table in main memory is not there.
        table_bytes = self._network.embedding.nbytes if self._sizes.has_host_table else 0
        usable = available_bytes(self.device) + self.weight_bytes - table_bytes
        host = available_bytes(torch.device("cpu")) if on_gpu else None
        planned = make_plan(self.config, tokens, Place(on_gpu, self.dtype.itemsize, usable, None, host))
        enough = [near for near in planned.nearest if near.tokens >= tokens]
        caps = [""] if planned.fits and planned.host_bytes else []
        caps += [f" {near.gpu_memory / 2**30:g}GiB" for near in enough if near.gpu_memory]
        if caps and self._tiers is None:
            return f"with --gpu-memory{caps[0]} keys and values go to main memory, where it fits"
        packing = next((near.packing for near in enough if near.packing), None)
        return None if packing is None else f"packed ('salalocal quantize --format {packing}') it fits"

    def max_context_tokens(self) -> int:
        """The longest session that fits now: by free memory, and by the trained length of RoPE attention."""
        free = available_bytes(self.device)
        if self._tiers is None:
            longest = self._sizes.longest_context(free)
        else:
            unused = self._tiers.free_pages * self._tiers.page_bytes
            longest = self._sizes.longest_tiered(free, available_bytes(torch.device("cpu")) + unused)
        trained = self.config.rope_positions
        return longest if trained is None else min(longest, trained)

    def length_note(self, tokens: int) -> str | None:
        """A sentence where `tokens` exceed the length a model without attention positions was trained at."""
        trained = self.config.max_position_embeddings
        if self.config.rope_positions is not None or tokens <= trained:
            return None
        return f"{tokens:,} tokens are more than the {trained:,} the model was made for; answers may be less sure"

    def new_session(self, record_selection: bool = False, save_to: str | Path | None = None) -> Session:
        """An empty session.

        Args:
            record_selection: it can tell which blocks the last call read.
            save_to: a folder of its own that it saves itself into while it reads: at checkpoints, every 32,768 tokens
                or 20 seconds, and at the end of a prompt; a killed process goes on with `restore`. None: not saved.

        Raises:
            DoesNotFit: not even an empty session fits into the free memory.
            InvalidRequest: the folder holds other files, or a saved session.
        """
        longest = self.max_context_tokens()
        if longest < 1:
            needed, available = self._sizes.context_bytes(1), available_bytes(self.device)
            raise DoesNotFit(
                f"a session of {self.name} needs {needed / 2**20:,.0f} MiB and {available / 2**20:,.0f} MiB are free; "
                "close other programs",
                needed_bytes=needed,
                available_bytes=available,
            )
        cache = SessionCache.empty(self.config, self.dtype, self.device, self._tiers)
        session = Session(self._network, cache, self._default_chunk, longest, record_selection, self._identity)
        if save_to is not None:
            session.save_behind(save_to)
        return session

    def restore(self, path: str | Path, record_selection: bool = False, save_to: str | Path | None = None) -> Session:
        """The session saved in a folder by `Session.save` or `save_to`: bit-equal to the one that was saved.

        An engine whose `kv` is of 8 bits rounds K and V of a session that was not, or in the other format.

        Every byte is checked before the session is handed out. The folder stays as it is.

        Args:
            path: the folder.
            record_selection, save_to: as for `new_session`; `save_to` may be `path` itself.

        Raises:
            BadSession: nothing is saved there, it is damaged, or of another model, dtype or format version.
            ContextTooLong: the session does not fit into the free memory.
            DoesNotFit, InvalidRequest: as `new_session`.
        """
        folder = Path(path).resolve()
        manifest, text = read_manifest(folder)
        check_model(folder, manifest, self._identity, self.config.block_size)
        session = self.new_session(record_selection)
        held, limit = manifest.length, session.max_tokens
        if held > limit:
            raise ContextTooLong(
                f"{folder}: the session holds {held:,} tokens and {limit:,} fit; close other programs",
                needed_tokens=held,
                limit_tokens=limit,
            )
        session.read_saved(folder, manifest, text)
        if save_to is not None:
            session.save_behind(save_to)
        return session

    def encode(self, content: str | Document | Sequence[Message] | Sequence[Document]) -> list[int]:
        """Text into token ids.

        A text or a document is encoded with special tokens off, each span of a document by itself. Messages give
        the whole prompt up to the assistant's turn. Documents give the beginning that every prompt about them has,
        whatever is asked: reading it in advance is work done for every question.

        Raises:
            InvalidRequest: the model has no tokenizer, or the list mixes messages and documents.
            BadTokenizer: the chat template fails on the messages.
        """
        if isinstance(content, str):
            return self.tokenizer.encode_text(content)
        if isinstance(content, Document):
            spans = (span for file in content.files for span in file.spans)
            return [token for span in spans for token in self.tokenizer.encode_text(span.text)]
        messages = [item for item in content if isinstance(item, Message)]
        documents = [item for item in content if isinstance(item, Document)]
        if len(messages) == len(content):
            return self.tokenizer.encode_prompt(messages).ids
        if len(documents) < len(content):
            raise InvalidRequest("encode takes a text, a document, a list of messages or a list of documents")
        prompt = self.tokenizer.encode_prompt([Message("user", "?")], documents)
        return prompt.ids[: prompt.stable_tokens]

    def generate(
        self, session: Session, ids: Sequence[int], sampling: Sampling, cancel: threading.Event | None = None
    ) -> Iterator[Progress | Token | Done]:
        """Answers the prompt `ids`; what the session already holds of it is not read again.

        Yields `Progress` while reading, a `Token` per token, and `Done`. Errors as for `generate.generate`.
        """
        return self._generate(session, Prompt(list(ids), stable_tokens=0), sampling, cancel)

    def chat(
        self,
        session: Session,
        messages: Sequence[Message],
        documents: Sequence[Document],
        sampling: Sampling,
        cancel: threading.Event | None = None,
        on_prompt: Callable[[int], None] | None = None,
    ) -> Iterator[Progress | Token | Evidence | Done]:
        """Answers the last message from the documents.

        The prompt is system message, documents in the order given, then turns, so that a further turn or another
        question re-reads none of it. Before `Done` comes `Evidence`: where the answer's quotes stand, and which
        sentences the attention layers read for it.

        With `closer_look_tokens`, prompts with documents that are long enough for sparse attention are answered from
        excerpts of them (`closer_look`): `session` then holds the prompt, and not the answer.

        `on_prompt` is told how many tokens the prompt has, before any of them is read; not of one that does not fit.
        """
        prompt = self.tokenizer.encode_prompt(messages, documents)
        session.check_fits(len(prompt.ids))
        if on_prompt is not None:
            on_prompt(len(prompt.ids))
        source = Source(session, prompt, documents)
        look = CloserLook(self.closer_look_tokens, self.config, self.tokenizer, self._excerpts_session)
        if documents and look.is_due(prompt):
            source = yield from look.source(source, messages, self._checkpoints(prompt), cancel)
        answer: list[str] = []
        tally = AttentionTally(source.session, self.config.sparse_layers, source.prompt.stable_tokens)
        try:
            with tally.watching() if documents else nullcontext():
                for event in self._generate(source.session, source.prompt, sampling, cancel):
                    if isinstance(event, Token):
                        answer.append(event.text)
                        if documents:
                            tally.add()
                    elif isinstance(event, Done) and documents:
                        quotes = self._quote_index(documents).match("".join(answer))
                        files = self.tokenizer.document_tokens(source.documents, source.prompt.documents_at)
                        yield Evidence(quotes, read_passages(tally.mass(), files))
                    yield source.done(event) if isinstance(event, Done) else event
        except Cancelled as error:
            raise Cancelled(session.length) from error

    def _excerpts_session(self) -> Session:
        """An empty one for what is looked at more closely, each time the same."""
        if self._close is None:
            self._close = self.new_session()
        self._close.rewind(self._close.checkpoints[0])
        return self._close

    def _checkpoints(self, prompt: Prompt) -> set[int]:
        """Where the session keeps what it knows while it reads a prompt."""
        return {prompt.stable_tokens, *range(CHECKPOINT_EVERY_TOKENS, len(prompt.ids), CHECKPOINT_EVERY_TOKENS)}

    def _generate(
        self, session: Session, prompt: Prompt, sampling: Sampling, cancel: threading.Event | None
    ) -> Iterator[Progress | Token | Done]:
        return generate(
            session,
            prompt.ids,
            sampling,
            eos_ids={*self.config.eos_token_ids, *self.tokenizer.eos_ids},
            make_stream=self.tokenizer.stream,
            checkpoints_at=self._checkpoints(prompt),
            cancel=cancel,
        )

    def _quote_index(self, documents: Sequence[Document]) -> QuoteIndex:
        """The index of these documents; kept for the next question about the same ones."""
        if self._indexed is None or self._indexed[0] != tuple(documents):
            self._indexed = (tuple(documents), QuoteIndex(documents))
        return self._indexed[1]
