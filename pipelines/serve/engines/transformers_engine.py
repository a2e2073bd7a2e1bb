"""The engine for machines without vLLM: a transformers model with peft adapters, run by one thread.

Scoring uses `BranchScorer`, the code that also trains and evaluates. Generation is batched token by token, with rows of
several adapters in one batch.
"""

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from pft_core.encoding import BranchedExample
from pft_core.errors import UserError
from pft_core.evaluation import SteeringVectors, score_branches, steered
from pft_core.policies import (
    Precision,
    end_tokens,
    load_base,
    load_tokenizer,
    refuse_foreign_tokenizer,
    with_adapter,
)
from pft_core.scoring import BranchScorer
from pipelines.serve.engines.cache_probe import refuse_other_caches
from pipelines.serve.engines.decoding import BASE, DecodingBatch, DecodingRow, recoverable
from pipelines.serve.engines.grammars import Grammars
from pipelines.serve.engines.scoring_jobs import Scoring, ScoringPart, next_parts
from pipelines.serve.engines.serving_engine import EngineFault, GenerationRequest, Steering, Step
from pipelines.serve.policies import LoadedAdapter, refuse_other_kinds

log = logging.getLogger(__name__)

TURNS = 8  # a scoring batch is cut into so many while texts are generated, each of which gains a token in between


@dataclass(frozen=True)
class TransformersSettings:
    """The model to load and the batch limits. vectors: steering vectors with the layer that they are added to."""

    model: str
    precision: Precision
    device: str
    max_batch: int
    tokens_per_batch: int
    max_loaded_adapters: int
    vectors: tuple[SteeringVectors, int] | None = None


@dataclass(eq=False)
class _Generation:
    row: DecodingRow
    adapter: LoadedAdapter | None
    done: Callable[[BaseException], None]


class TransformersEngine:
    """See `serving_engine.ServingEngine`. One thread does all work on the model, in order of arrival."""

    name = "transformers"

    def __init__(self, settings: TransformersSettings):
        """Load the model. Raises UserError if it cannot be loaded."""
        self._settings = settings
        device = torch.device(settings.device)
        base = load_base(settings.model, precision=settings.precision, gradient_checkpointing=False, device=device)
        tokenizer = load_tokenizer(settings.model)
        refuse_foreign_tokenizer(base, tokenizer)
        self._model = AdaptedModel(base.eval(), max_adapters=settings.max_loaded_adapters, device=device)
        eos, *self._also_ends = end_tokens(tokenizer, base.generation_config.eos_token_id)
        self._grammars = Grammars(tokenizer, base.get_output_embeddings().weight.shape[0])
        self._batch = DecodingBatch(self._call, eos, device)
        refuse_other_caches(base, self._batch, name=settings.model, eos=eos, device=device)
        self._inbox: deque[Scoring | _Generation] = deque()  # new jobs, not looked at yet
        self._queue: deque[_Generation] = deque()  # used by the thread only, like the next two
        self._scorings: list[Scoring] = []
        self._admitted: list[_Generation] = []  # in this round
        self._news = threading.Condition()
        self._closed = False
        self._fault: EngineFault | None = None
        self._thread = threading.Thread(target=self._run, name="transformers-engine", daemon=True)
        self._thread.start()

    async def generate(self, request: GenerationRequest, adapter: LoadedAdapter | None) -> AsyncIterator[Step]:
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[Step | BaseException] = asyncio.Queue()

        def put(step: Step | BaseException) -> None:
            _call_in_loop(loop, steps.put_nowait, step)

        shift = self._shift(request.steering)
        grammar = request.sampling.grammar
        matcher = None if grammar is None else await asyncio.to_thread(self._grammars.matcher, grammar)
        # A grammar and choices define where an answer ends.
        ends = () if grammar or request.sampling.choices else tuple(self._also_ends)
        row = DecodingRow(
            request.prompt_ids, request.sampling, BASE, emit=put, shift=shift, grammar=matcher, also_ends=ends
        )
        self._submit(_Generation(row, adapter, done=put))
        try:
            while True:
                step = await steps.get()
                if isinstance(step, BaseException):
                    raise step
                yield step
                if step.finish_reason is not None:
                    return
        finally:
            row.is_dropped = True

    async def score(
        self,
        examples: Sequence[BranchedExample],
        adapter: LoadedAdapter | None,
        steering: Steering | None = None,
    ) -> list[NDArray[np.float32]]:
        if not examples:
            return []
        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[NDArray[np.float32]]] = loop.create_future()

        def settle(outcome: list[NDArray[np.float32]] | BaseException) -> None:
            if result.done():  # the client disconnected
                return
            if isinstance(outcome, BaseException):
                result.set_exception(outcome)
            else:
                result.set_result(outcome)

        def done(outcome: list[NDArray[np.float32]] | BaseException) -> None:
            _call_in_loop(loop, settle, outcome)

        job = Scoring(examples, adapter, steering, done)
        self._submit(job)
        try:
            return await result
        finally:
            job.is_over = True

    async def check(self) -> None:
        if self._fault is not None or not self._thread.is_alive():
            raise self._fault or EngineFault("the engine's thread ended")

    async def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify()
        await asyncio.to_thread(self._thread.join)

    def _submit(self, job: Scoring | _Generation) -> None:
        with self._news:
            if self._closed or self._fault is not None:
                raise EngineFault("the engine is stopped")
            self._inbox.append(job)
            self._news.notify()

    def _run(self) -> None:
        try:
            while self._await_work():
                self._take_in()
                self._score()
                self._admit()
                if self._batch.rows:
                    self._batch.step()
        except BaseException as error:  # whatever ends the only thread must reach all waiting requests
            self._fail(error)

    def _await_work(self) -> bool:
        with self._news:
            while not (self._closed or self._inbox or self._scorings or self._queue or self._batch.rows):
                self._news.wait()
            return not self._closed

    def _fail(self, error: BaseException) -> None:
        fault = EngineFault(f"the engine stopped: {error!r}")
        with self._news:
            self._fault = fault
            jobs = [*self._inbox, *self._scorings, *self._queue, *self._admitted]
        for job in jobs:
            job.done(fault)
        for row in self._batch.rows:
            row.emit(fault)

    def _take_in(self) -> None:
        """Empty the inbox; what nobody waits for any more is forgotten."""
        with self._news:
            jobs = list(self._inbox)
            self._inbox.clear()
        self._admitted = []
        self._queue += [job for job in jobs if isinstance(job, _Generation)]
        for job in jobs:
            if isinstance(job, Scoring):
                job.cut(self._settings.tokens_per_batch // TURNS)
                self._scorings.append(job)
        self._scorings = [job for job in self._scorings if not job.is_over]

    def _score(self) -> None:
        """Score some of the waiting parts; fewer at once while texts are generated, so that those continue."""
        if self._scorings:
            turns = TURNS if self._batch.rows or self._queue else 1
            self._score_parts(next_parts(self._scorings, self._settings.tokens_per_batch // turns))
            self._scorings = [job for job in self._scorings if not job.is_over]

    def _score_parts(self, parts: Sequence[ScoringPart]) -> None:
        """Score parts that share an adapter and steering in the same batches."""
        first = parts[0].job
        try:
            scores = self._scores([part.example for part in parts], first.adapter, first.steering)
            for part, logps in zip(parts, scores, strict=True):
                part.take(logps)
        except Exception as error:
            fault = recoverable(error)
            jobs = list(dict.fromkeys(part.job for part in parts))
            if len(jobs) == 1:
                first.end(fault)
            for job in jobs if len(jobs) > 1 else ():  # one job's error failed the whole batch: score each on its own
                self._score_parts([part for part in parts if part.job is job])

    def _scores(
        self, examples: Sequence[BranchedExample], adapter: LoadedAdapter | None, steering: Steering | None
    ) -> list[NDArray[np.float32]]:
        with self._model.only(adapter, in_use=self._adapters_in_use()) as model:
            scorer = BranchScorer(model, backend="auto" if steering is None else "separate")
            context: Any = nullcontext()
            if steering is not None:
                vector, layer = self._direction(steering.axis)
                context = steered(scorer, vector, layer=layer, multiplier=steering.multiplier)
            with context:
                return score_branches(examples, scorer=scorer, tokens_per_batch=self._settings.tokens_per_batch)

    def _admit(self) -> None:
        """Admit generations, first come first served, while rows, tokens and adapter slots are free."""
        admitted: list[DecodingRow] = []
        while self._queue and self._fits(self._queue[0], admitted):
            job = self._queue.popleft()
            if job.row.is_dropped:
                continue
            self._admitted.append(job)
            try:
                job.row.adapter = self._model.load(job.adapter, in_use=self._adapters_in_use(admitted))
                admitted.append(job.row)
            except UserError as error:
                job.done(error)
        for group in _prompt_groups(admitted):
            self._read_prompts(group)

    def _read_prompts(self, rows: Sequence[DecodingRow]) -> None:
        """Read new rows' prompts. An error affects these rows only, as the others' cache is not touched before it."""
        try:
            self._batch.admit(rows)
        except Exception as error:
            fault = recoverable(error)
            for row in rows if len(rows) > 1 else ():  # one row's error failed them all: read each on its own
                self._read_prompts([row])
            if len(rows) == 1:
                rows[0].emit(fault)

    def _fits(self, job: _Generation, admitted: Sequence[DecodingRow]) -> bool:
        if len(self._batch.rows) + len(admitted) >= self._settings.max_batch:
            return False
        longest = max(len(row.prompt_ids) for row in [*admitted, job.row])
        if admitted and (len(admitted) + 1) * longest > self._settings.tokens_per_batch:
            return False
        return self._model.has_room(job.adapter, self._adapters_in_use(admitted))

    def _adapters_in_use(self, admitted: Sequence[DecodingRow] = ()) -> set[str]:
        return {row.adapter for row in [*self._batch.rows, *admitted]}

    def _call(self, *, adapter_names: list[str], shifts: list[Tensor | None], **arguments: Any) -> Any:
        layer = self._settings.vectors[1] if self._settings.vectors else 0
        with shifted(self._model.base, layer, shifts):
            return self._model(adapter_names, **arguments)

    def _direction(self, axis: str) -> tuple[Tensor, int]:
        if self._settings.vectors is None:
            raise UserError("this server has no steering vectors: set steering.vectors in its recipe")
        vectors, layer = self._settings.vectors
        return vectors.direction(axis, layer), layer

    def _shift(self, steering: Steering | None) -> Tensor | None:
        return None if steering is None else steering.multiplier * self._direction(steering.axis)[0]


def _call_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in the event loop of the request; do nothing if that loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


def _prompt_groups(rows: Sequence[DecodingRow]) -> list[list[DecodingRow]]:
    """Group rows to be read at once; rows that request their prompt's log-probabilities are read alone."""
    plain = [row for row in rows if row.sampling.prompt_logprobs is None]
    return [*([plain] if plain else []), *([row] for row in rows if row.sampling.prompt_logprobs is not None)]


@contextmanager
def shifted(model: Any, layer: int, shifts: Sequence[Tensor | None]) -> Iterator[None]:
    """Add each row's vector to the last column of a layer's output, at the token that predicts the next one."""
    if all(shift is None for shift in shifts):
        yield
        return

    def add(_: Any, __: Any, hidden_RLD: Tensor) -> Tensor:
        for row, shift in enumerate(shifts):
            if shift is not None:
                hidden_RLD[row, -1] += shift.to(hidden_RLD)
        return hidden_RLD

    handle = model.get_decoder().layers[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


class AdaptedModel:
    """A base model that holds at most `max_adapters` adapters and unloads the least recently used one first.

    Used by one thread only.
    """

    def __init__(self, base: Any, *, max_adapters: int, device: torch.device):
        self.base = base
        self._adapted: Any = None  # a PeftModel around the base, once an adapter is loaded
        self._max_adapters, self._device = max_adapters, device
        self._names: OrderedDict[str, None] = OrderedDict()

    def __call__(self, adapter_names: list[str], **arguments: Any) -> Any:
        if self._adapted is None:
            return self.base(**arguments)
        if set(adapter_names) == {BASE}:
            with self._adapted.disable_adapter():
                return self._adapted(**arguments)
        return self._adapted(adapter_names=adapter_names, **arguments)

    def has_room(self, adapter: LoadedAdapter | None, in_use: set[str]) -> bool:
        """Return whether an adapter is loaded, or can be loaded without unloading one in use."""
        name = _name(adapter)
        return name == BASE or name in self._names or len(in_use - {BASE}) < self._max_adapters

    def load(self, adapter: LoadedAdapter | None, *, in_use: set[str]) -> str:
        """Load an adapter if it is not loaded yet, and return its name in peft. Raises UserError if it does not fit."""
        name = _name(adapter)
        if adapter is None:
            return name
        if name not in self._names:
            idle = [other for other in self._names if other not in in_use]
            if len(self._names) >= self._max_adapters and idle:
                self._unload(idle[0])
            self._load(name, adapter)
            self._names[name] = None
        self._names.move_to_end(name)
        return name

    @contextmanager
    def only(self, adapter: LoadedAdapter | None, *, in_use: set[str]) -> Iterator[Any]:
        """Yield the model with only this adapter active; unload it afterwards if it exceeds the limit."""
        name = self.load(adapter, in_use=in_use)
        if self._adapted is None:
            yield self.base
        elif adapter is None:
            with self._adapted.disable_adapter():
                yield self._adapted
        else:
            self._adapted.set_adapter(name, inference_mode=True)
            yield self._adapted
        if len(self._names) > self._max_adapters:
            self._unload(name)

    def _load(self, name: str, adapter: LoadedAdapter) -> None:
        refuse_other_kinds(adapter.id, adapter.folder)
        try:
            self._adapted = with_adapter(self._adapted or self.base, adapter.folder, name=name).to(self._device).eval()
        except Exception as error:  # peft can raise anything on a foreign adapter
            # Undo what peft did before it failed, because other requests use this model.
            if self._adapted is None:
                strip(self.base)
            elif name in self._adapted.peft_config:
                self._adapted.delete_adapter(name)
            log.warning("%s: %s", adapter.id, error)
            raise UserError(f"{adapter.id} does not fit the served model") from None

    def _unload(self, name: str) -> None:
        del self._names[name]
        if self._names:
            self._adapted.delete_adapter(name)
        else:
            self._adapted.unload()
            self._adapted = None


def strip(base: Any) -> None:
    """Remove the adapter layers from a base model that peft has partly changed."""
    for place, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, leaf = place.rpartition(".")
            setattr(base.get_submodule(parent), leaf, module.get_base_layer())


def _name(adapter: LoadedAdapter | None) -> str:
    # A module's name must not contain dots; the digest alone identifies the content.
    return BASE if adapter is None else f"sha_{adapter.id.rpartition('@')[2]}"
