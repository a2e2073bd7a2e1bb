"""The vLLM engine: one model in its own process, many adapters, prompts cached by prefix.

Everything but free text is requested one token at a time, each with the ids allowed at its position:

- Scoring requests every label as the only allowed token, and reads its log-probability before the mask. The prefix
  comes from the cache. `logprob_token_ids` is not used, because it corrupts the `logprobs` of other requests in the
  same batch (V1 model runner, 0.32).
- On a CPU each request pays for the end of the prompt that fills no cache block, which is read again. There an answer
  is requested as a whole: its last label as above, the labels before it by `prompt_logprobs`. For these vLLM must be
  made to use the cache, and its values for cached tokens are noise, so such labels are requested one by one.
- A choice is written token by token, with a request only where the choices differ. A grammar would describe text, which
  may be tokenized differently from the choices. A logits processor would have to exist twice, because the V1 runner
  (CPU) and the V2 runner (GPU) load different classes.
"""

import asyncio
import multiprocessing
import os
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # read when vllm is imported

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from vllm.config import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor import UniProcExecutor

from pft_core.encoding import Branch, BranchedExample
from pft_core.errors import UserError
from pft_core.policies import place_of_model
from pipelines.serve.engines import vllm_cpu_blocks, vllm_cpu_lora
from pipelines.serve.engines.grammars import JSON_DEFAULTS
from pipelines.serve.engines.serving_engine import (
    EngineFault,
    GenerationRequest,
    Grammar,
    RequestFault,
    Sampling,
    Steering,
    Step,
    Token,
)
from pipelines.serve.policies import LoadedAdapter, refuse_other_kinds
from pipelines.serve.task_groups import gather_or_cancel

# The engine's process imports this module too, and peft alone would take 4 s, so code that needs peft is imported late.
if TYPE_CHECKING:
    from pft_core.policies import Precision

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
CPU_READ_TOKENS = 128  # of an answer at once: 78 MB of logits with a vocabulary of 152,000

TokenPath = tuple[int, ...]  # token ids that follow an example's prefix


@dataclass(frozen=True)
class VllmSettings:
    """The model to load and the engine's limits. gpu_memory is a share of the GPU's memory, unused on a CPU."""

    model: str
    precision: "Precision"
    max_length: int
    max_batch: int
    max_loaded_adapters: int
    max_adapter_rank: int
    gpu_memory: float
    cpu_cache_gib: int
    threads: int
    enable_lora: bool


class OrphanEndsExecutor(UniProcExecutor):
    """vLLM's executor in the engine's process, which ends when its parent process is gone.

    vLLM alone would leave the engine running, with its memory, after a replica is killed by SIGKILL.
    """

    def _init_executor(self) -> None:
        threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
        if current_platform.is_cpu():
            vllm_cpu_lora.install()
            vllm_cpu_blocks.install()
        super()._init_executor()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class VllmEngine:
    """See `serving_engine.ServingEngine`. Use it from one event loop only."""

    name = "vllm"

    def __init__(self, settings: VllmSettings):
        """Start the engine's process and load the model. Raises UserError if it cannot be loaded."""
        from pft_core.policies import end_tokens, load_tokenizer

        self._settings = settings
        tokenizer = load_tokenizer(settings.model)
        with _environment(settings), _load_faults(settings):
            self._engine = AsyncLLM.from_engine_args(_arguments(settings))
        named = self._engine.model_config.try_get_generation_config().get("eos_token_id")
        self._ends = end_tokens(tokenizer, named)
        self._eos = self._ends[0]
        self._request_numbers, self._adapter_numbers = count(), count(1)
        self._adapters: dict[str, LoRARequest] = {}
        self._loading = asyncio.Lock()
        # More at once would only fill vLLM's queue, ahead of later requests with a single prompt.
        self._slots = asyncio.Semaphore(settings.max_batch)

    async def generate(self, request: GenerationRequest, adapter: LoadedAdapter | None) -> AsyncGenerator[Step, None]:
        _refuse(request.steering)
        self._refuse_overlong(len(request.prompt_ids) + 1)
        with _faults():
            lora = await self._lora(adapter)
            write = self._write_choice if request.sampling.choices else self._write
            async with aclosing(write(request, lora)) as steps:
                async for step in steps:
                    yield step

    async def score(
        self,
        examples: Sequence[BranchedExample],
        adapter: LoadedAdapter | None,
        steering: Steering | None = None,
    ) -> list[NDArray[np.float32]]:
        _refuse(steering)
        for example in examples:
            self._refuse_overlong(len(example.prefix_ids) + max(len(b.input_ids) for b in example.branches))
        with _faults():
            lora = await self._lora(adapter)
            return await gather_or_cancel(*(self._score(example, lora) for example in examples))

    async def check(self) -> None:
        with _faults():
            await self._engine.check_health()

    async def close(self) -> None:
        await asyncio.to_thread(self._engine.shutdown)

    async def _write(self, request: GenerationRequest, lora: LoRARequest | None) -> AsyncGenerator[Step, None]:
        """Continue freely; the engine ends a text that reaches max_length."""
        prompt, sampling = _prompt(request), request.sampling
        stop, kind = self._stops(sampling), RequestOutputKind.FINAL_ONLY
        max_tokens = max(sampling.max_tokens, 1)  # vLLM writes at least one
        params = _sampling_params(
            sampling,
            max_tokens=max_tokens,
            stop_token_ids=stop,
            output_kind=RequestOutputKind.DELTA if request.stream else kind,
        )
        is_first = True
        async with aclosing(self._run(prompt, params, lora)) as outputs:
            async for output in outputs:
                yield self._step(output, sampling, prompt if is_first else [])
                is_first = False

    def _stops(self, sampling: Sampling) -> list[int]:
        """Return the token ids that end a text; under a grammar, only EOS does."""
        if sampling.ignore_eos:
            return []
        return [self._eos] if sampling.grammar else [*self._ends]

    def _step(self, output: RequestOutput, sampling: Sampling, prompt: list[int]) -> Step:
        """Return the step of an output. prompt: the prompt's tokens for the first output, [] for later ones."""
        completion = output.outputs[0]
        tokens, end = _tokens(completion, sampling.logprobs), None
        if tokens and tokens[-1].id in self._stops(sampling):
            end = tokens.pop()
        prompt_tokens = _prompt_tokens(output, prompt, sampling.prompt_logprobs) if prompt else ()
        cached = _num_cached(output) if prompt else 0
        if sampling.max_tokens == 0:
            return Step((), "length", cached, prompt_tokens)
        return Step(tuple(tokens), completion.finish_reason, cached, prompt_tokens, end)

    async def _write_choice(self, request: GenerationRequest, lora: LoRARequest | None) -> AsyncGenerator[Step, None]:
        """Continue to one of the choices; tokens that need no request come with the next one that does."""
        prompt, sampling = _prompt(request), request.sampling
        max_tokens = min(sampling.max_tokens, self._settings.max_length - len(prompt))
        output_ids: list[int] = []
        waiting: list[Token] = []
        is_first, reason = True, None
        while reason is None:
            token, cached = await self._choose(prompt, output_ids, sampling, lora)
            output_ids.append(token.id)
            if token.id == self._eos:
                reason = "stop"
            else:
                waiting.append(token)
                reason = "length" if len(output_ids) == max_tokens else None
            if cached is not None or reason is not None:
                yield Step(tuple(waiting), reason, (cached or 0) if is_first else 0)
                waiting.clear()
                is_first = False

    async def _choose(
        self, prompt: list[int], output_ids: list[int], sampling: Sampling, lora: LoRARequest | None
    ) -> tuple[Token, int | None]:
        """Return the next token of a choice, and the number of cached tokens, None if the model did not run."""
        allowed = next_tokens(sampling.choices, output_ids, self._eos)
        if len(allowed) == 1 and sampling.logprobs is None:
            return Token(allowed[0]), None
        params = _sampling_params(sampling, max_tokens=1, position=len(output_ids), allowed_token_ids=allowed)
        output = await self._last_output([*prompt, *output_ids], params, lora)
        return _tokens(output.outputs[0], sampling.logprobs)[0], _num_cached(output)

    async def _score(self, example: BranchedExample, lora: LoRARequest | None) -> NDArray[np.float32]:
        """Return the log-probabilities of an example's branches; each label is read once, even if branches share it."""
        prefix: list[int] = example.prefix_ids.tolist()
        labels = [_labels(branch) for branch in example.branches]
        paths = sorted({path for branch in labels for path in branch}, key=len)
        # The first request leaves the prefix in the cache for all others.
        logp_of = await self._read(prefix, paths[0], lora) if paths else {}
        if current_platform.is_cpu():
            whole = {branch[-1] for branch in labels if branch} - logp_of.keys()
            logp_of |= _merged(await gather_or_cancel(*(self._read_whole(prefix, path, lora) for path in whole)))
        missing = [path for path in paths if path not in logp_of]
        logp_of |= _merged(await gather_or_cancel(*(self._read(prefix, path, lora) for path in missing)))
        return np.array([sum(logp_of[path] for path in branch) for branch in labels], dtype=np.float32)

    async def _read_whole(self, prefix: list[int], path: TokenPath, lora: LoRARequest | None) -> dict[TokenPath, float]:
        """Read all labels of a path, in pieces, because vLLM holds the logits of everything that it reads at once."""
        ends = [*range(CPU_READ_TOKENS, len(path), CPU_READ_TOKENS), len(path)]
        return _merged([await self._read(prefix, path[:end], lora, all_labels=True) for end in ends])

    async def _read(
        self, prefix: list[int], path: TokenPath, lora: LoRARequest | None, *, all_labels: bool = False
    ) -> dict[TokenPath, float]:
        """Return the log-probability of a path's last token given all tokens before it.

        all_labels: return those of the path's earlier tokens too, except for tokens that came from the cache.
        """
        *context, label = path
        params = SamplingParams(
            temperature=0,
            max_tokens=1,
            logprobs=0,
            prompt_logprobs=0 if all_labels and context else None,
            skip_reading_prefix_cache=False,
            allowed_token_ids=[label],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async with self._slots:
            output = await self._last_output([*prefix, *context], params, lora)
        [token] = _tokens(output.outputs[0], 0)
        assert token.id == label
        assert token.logprob is not None
        return _context_logprobs(output, len(prefix), context) | {path: token.logprob}

    async def _last_output(self, prompt: list[int], params: SamplingParams, lora: LoRARequest | None) -> RequestOutput:
        async with aclosing(self._run(prompt, params, lora)) as outputs:
            async for output in outputs:
                last = output
        return last

    async def _run(
        self, prompt: list[int], params: SamplingParams, lora: LoRARequest | None
    ) -> AsyncGenerator[RequestOutput, None]:
        request_id = str(next(self._request_numbers))
        outputs = self._engine.generate(tokens_input(prompt), params, request_id, lora_request=lora)
        async with aclosing(outputs):  # closing them here makes vLLM drop the request
            async for output in outputs:
                _refuse_aborted(output.outputs[0].finish_reason, params)
                yield output

    async def _lora(self, adapter: LoadedAdapter | None) -> LoRARequest | None:
        """Return an adapter's LoRARequest, and load it on first use; vLLM unloads and reloads adapters as needed."""
        if adapter is None:
            return None
        async with self._loading:
            if adapter.id not in self._adapters:
                await asyncio.to_thread(refuse_misfit, adapter, self._engine.model_config.hf_config, self._settings)
                request = LoRARequest(adapter.id, next(self._adapter_numbers), str(adapter.folder))
                await self._load(request)
                self._adapters[adapter.id] = request
        return self._adapters[adapter.id]

    async def _load(self, request: LoRARequest) -> None:
        """Load an adapter before its first request, as a failure within a request would take the engine down."""
        try:
            await self._engine.add_lora(request)
        except EngineDeadError:
            raise
        except Exception as error:  # errors of the engine's process arrive as a bare Exception
            await self._engine.remove_lora(request.lora_int_id)
            raise UserError(f"{request.lora_name}: vLLM cannot load it ({_first_line(error)})") from None

    def _refuse_overlong(self, num_tokens: int) -> None:
        limit = self._settings.max_length
        if num_tokens > limit:
            raise UserError(
                f"{num_tokens} tokens exceed engine.max_length={limit}: shorten the prompt, or raise the limit"
            )


def _refuse_aborted(reason: str | None, params: SamplingParams) -> None:
    """Raise an error if vLLM aborted a request. Reason `error` is the request's fault, so a retry would fail too."""
    if reason == "error" and params.structured_outputs is not None:
        raise UserError("structured_outputs or response_format: the grammar became too large to be enforced")
    if reason == "error":
        raise RequestFault("the engine could not answer this request: see the server's log")
    if reason not in (None, "stop", "length"):
        raise EngineFault(f"vLLM aborted a request ({reason})")


def _prompt(request: GenerationRequest) -> list[int]:
    return [int(token) for token in request.prompt_ids]


def next_tokens(choices: Sequence[Sequence[int]], output_ids: Sequence[int], eos: int) -> list[int]:
    """Return the tokens that continue one of the choices; EOS after a complete one."""
    done = len(output_ids)
    matching = [[*choice, eos] for choice in choices if list(choice[:done]) == list(output_ids)]
    return sorted({ids[done] for ids in matching})


def refuse_misfit(adapter: LoadedAdapter, base_config: Any, settings: VllmSettings) -> None:
    """Raise UserError if an adapter is unsupported, incomplete, or made for another model.

    vLLM would silently accept tensors that are too small, and would silently ignore missing ones.
    """
    place = adapter.id
    if not settings.enable_lora:
        raise UserError(f"{place}: this engine runs without adapters (enable_lora is off)")
    refuse_other_kinds(place, adapter.folder)
    try:
        rank, expected = _expected_shapes(adapter.folder, base_config)
        actual = _shapes(adapter.folder)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{place}: cannot be read as a LoRA adapter of this model ({_first_line(error)})") from None
    if rank > settings.max_adapter_rank:
        raise UserError(f"{place} has rank {rank}, engine.max_adapter_rank is {settings.max_adapter_rank}: raise it")
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            difference = f"{name} has shape {actual.get(name)}, the model needs {expected.get(name)}"
            raise UserError(f"{place} does not fit the served model: {difference}")


def _expected_shapes(folder: Path, base_config: Any) -> tuple[int, dict[str, list[int]]]:
    """Return the highest rank in an adapter's config, and the shapes that its tensors must have for the base model."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    config: Any = LoraConfig.from_pretrained(str(folder))
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(base_config, trust_remote_code=False)
        base.name_or_path = config.base_model_name_or_path  # otherwise peft warns that the base was renamed
        tensors = get_peft_model_state_dict(get_peft_model(base, config), save_embedding_layers=False)
    return max([config.r, *config.rank_pattern.values()]), {name: list(t.shape) for name, t in tensors.items()}


def _shapes(folder: Path) -> dict[str, list[int]]:
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _merged(parts: Sequence[dict[TokenPath, float]]) -> dict[TokenPath, float]:
    return {path: logp for part in parts for path, logp in part.items()}


def _labels(branch: Branch) -> list[TokenPath]:
    """Return the branch up to and including each of its labels."""
    ids = branch.input_ids.tolist()
    return [tuple(ids[: place + 1]) for place in np.flatnonzero(branch.label_mask)]


def _tokens(completion: CompletionOutput, num_top: int | None) -> list[Token]:
    if num_top is None:
        return [Token(token) for token in completion.token_ids]
    assert completion.logprobs is not None
    tokens = []
    for token, entries in zip(completion.token_ids, completion.logprobs, strict=True):
        assert entries is not None
        tokens.append(_token(token, entries, num_top))
    return tokens


def _prompt_tokens(output: RequestOutput, prompt: Sequence[int], num_top: int | None) -> tuple[Token, ...]:
    if num_top is None:
        return ()
    assert output.prompt_logprobs is not None
    pairs = zip(prompt, output.prompt_logprobs, strict=True)
    return tuple(Token(token) if entries is None else _token(token, entries, num_top) for token, entries in pairs)


def _context_logprobs(output: RequestOutput, start: int, context: Sequence[int]) -> dict[TokenPath, float]:
    """Return the log-probabilities of a context after `start` tokens, without cached tokens, whose values are noise."""
    logprobs = output.prompt_logprobs
    if logprobs is None:
        return {}
    first = max(_num_cached(output) + 1, start)
    paths = {place: tuple(context[: place - start + 1]) for place in range(first, start + len(context))}
    # Only the first token has no entries, and its place is 0, before any of these.
    return {path: logprobs[place][path[-1]].logprob for place, path in paths.items()}  # type: ignore[index]  # see above


def _token(token: int, entries: Any, num_top: int) -> Token:
    """Return a token with the likeliest tokens at its position, none of them forbidden by a grammar."""
    pairs = sorted(((id, entry.logprob) for id, entry in entries.items()), key=lambda pair: -pair[1])
    return Token(token, entries[token].logprob, tuple(pair for pair in pairs[:num_top] if pair[1] != float("-inf")))


def _num_cached(output: RequestOutput) -> int:
    return output.num_cached_tokens or 0


def _sampling_params(
    sampling: Sampling,
    *,
    max_tokens: int,
    position: int = 0,
    stop_token_ids: list[int] | None = None,
    allowed_token_ids: list[int] | None = None,
    output_kind: RequestOutputKind = RequestOutputKind.DELTA,
) -> SamplingParams:
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=None if sampling.seed is None else sampling.seed + position,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=max_tokens,
        min_tokens=sampling.min_tokens,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        structured_outputs=_grammar(sampling.grammar),
        stop_token_ids=stop_token_ids,
        allowed_token_ids=allowed_token_ids,
        ignore_eos=True,  # otherwise vLLM also stops at the tokens that the model's generation_config.json names
        detokenize=False,
        output_kind=output_kind,
    )


def _grammar(grammar: Grammar | None) -> StructuredOutputsParams | None:
    if grammar is None:
        return None
    if grammar.kind == "regex":
        return StructuredOutputsParams(regex=grammar.text)
    return StructuredOutputsParams(json=grammar.text)


def _arguments(settings: VllmSettings) -> AsyncEngineArgs:
    arguments: dict[str, Any] = {
        "model": place_of_model(settings.model),
        "dtype": DTYPES[settings.precision],
        "max_model_len": settings.max_length,
        "max_num_seqs": settings.max_batch,
        "enable_prefix_caching": True,
        "enable_lora": settings.enable_lora,
        "max_loras": settings.max_loaded_adapters,
        "max_lora_rank": settings.max_adapter_rank,
        "distributed_executor_backend": OrphanEndsExecutor,
        "structured_outputs_config": StructuredOutputsConfig(
            backend="guidance", disable_any_whitespace=not JSON_DEFAULTS["whitespace_flexible"]
        ),
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if not current_platform.is_cpu():
        return AsyncEngineArgs(gpu_memory_utilization=settings.gpu_memory, **arguments)
    # Eager, because compiling takes a minute at each start and LoRA turns it off anyway.
    cache_bytes = settings.cpu_cache_gib << 30
    block = vllm_cpu_blocks.block_tokens(getattr(torch, DTYPES[settings.precision]))
    return AsyncEngineArgs(block_size=block, kv_cache_memory_bytes=cache_bytes, enforce_eager=True, **arguments)


@contextmanager
def _environment(settings: VllmSettings) -> Iterator[None]:
    """Set the environment variables that the engine's process inherits; restore all of them afterwards."""
    before = dict(os.environ)
    os.environ |= {
        "OMP_NUM_THREADS": str(settings.threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with threads may hang
    }
    if current_platform.is_cpu():
        os.environ["TORCH_COMPILE_DISABLE"] = "1"  # otherwise the first log-probability waits 16 s for a compiler
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _load_faults(settings: VllmSettings) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"model={settings.model!r}: vLLM cannot run it ({_first_line(error)}): see the log, or set "
            "engine.name=transformers"
        ) from error


@contextmanager
def _faults() -> Iterator[None]:
    """Translate vLLM's errors into those of the engine protocol."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineFault("vLLM's process ended: see the server's log") from error
    except VLLMClientError as error:
        raise UserError(str(error)) from None


def _refuse(steering: Steering | None) -> None:
    if steering is not None:
        raise UserError(
            "steering vectors need the transformers engine, because vLLM cannot change its layers' outputs: set "
            "engine.name=transformers"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
