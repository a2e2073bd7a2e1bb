"""The encoded layer of a prepared data set: reuse a matching one, or encode it in bulk with Ray Data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pft_core.data import DatasetManifest
from pft_core.encoding import (
    EncodingSpec,
    LayerPart,
    TokenizerFacts,
    encode_part,
    finish_layer,
    layer_is_complete,
    layer_key,
    layer_parts,
)
from pft_core.errors import UserError
from pft_core.policies import within_positions
from pipelines.console import console
from pipelines.encode.model_tokenizer import ModelTokenizer
from pipelines.jobs import explain_deaths, map_batches
from pipelines.progress import stage, streamed

# Up to this many pairs are encoded in the caller's process: a Ray Data actor needs longer to import transformers.
PAIRS_ENCODED_HERE = 10_000

Say = Callable[[str], object]


def ensure_layer(
    data: Path,
    manifest: DatasetManifest,
    *,
    tokenizer: ModelTokenizer,
    facts: TokenizerFacts,
    spec: EncodingSpec,
    max_reject_fraction: float,
    concurrency: int,
    say: Say = console.print,
) -> Path:
    """Return the folder of the layer for this data set, tokenizer and spec; encode it first if it is missing.

    facts: facts of the tokenizer, which is loaded only if this process encodes. say: prints a message for the user.
    Raises UserError if no pair, or fewer than `1 - max_reject_fraction` of them, fit into `encoding.max_length` and
    the model's positions.
    """
    place = layer_place(data, manifest, model=tokenizer.model, facts=facts, spec=spec)
    folder, key, spec = place.folder, place.key, place.spec
    if place.is_complete:
        say(f"encoded layer {key} reused")
        # An earlier run may have allowed more rejects, and its messages about them are long gone.
        refuse_if_mostly_rejected(layer_parts(folder), place.limit, max_reject_fraction, say)
        return folder
    say(f"encoding {manifest.pairs_out} pairs into layer {key}")
    folder.mkdir(parents=True, exist_ok=True)
    encoder = {"tokenizer": tokenizer, "spec": spec, "manifest": manifest}
    parts = _encode(_tasks(data, folder, manifest), encoder, num_pairs=manifest.pairs_out, concurrency=concurrency)
    refuse_if_mostly_rejected(parts, place.limit, max_reject_fraction, say)
    finish_layer(folder, parts, key=key, view=spec.view)
    return folder


@dataclass(frozen=True)
class LengthLimit:
    """The longest pair that is kept. name: the source of the limit. advice: what to do if it leaves too few pairs."""

    max_length: int
    name: str
    advice: str


@dataclass(frozen=True)
class LayerPlace:
    """The folder of a layer, which may not exist yet, its key, and the spec with the limit on lengths that decides."""

    folder: Path
    key: str
    spec: EncodingSpec
    limit: LengthLimit

    @property
    def is_complete(self) -> bool:
        """Whether the layer is encoded."""
        return layer_is_complete(self.folder, key=self.key)


def layer_place(
    data: Path, manifest: DatasetManifest, *, model: str, facts: TokenizerFacts, spec: EncodingSpec
) -> LayerPlace:
    """Return the place of the layer for this data set, tokenizer and spec. model: decides the longest text."""
    limit = _limit_of(spec, model)
    spec = replace(spec, encoding=spec.encoding.model_copy(update={"max_length": limit.max_length}))
    key = layer_key(data_digest=manifest.data_digest, tokenizer_digest=facts.digest, spec=spec, space=manifest.space)
    return LayerPlace(data / "encoded" / key, key, spec, limit)


def _tasks(data: Path, folder: Path, manifest: DatasetManifest) -> list[dict[str, Any]]:
    """Return for each shard its number, its file, and the file for its encoded part."""
    return [
        {"number": i, "records": str(data / shard.path), "part": str(folder / f"part-{i:05d}.arrow")}
        for i, shard in enumerate(manifest.shards)
    ]


def _encode(
    tasks: list[dict[str, Any]], encoder: dict[str, Any], *, num_pairs: int, concurrency: int
) -> list[LayerPart]:
    """Encode the shards, here or on Ray. encoder: arguments of _ShardEncoder."""
    if num_pairs <= PAIRS_ENCODED_HERE:
        return _encode_here(tasks, encoder)
    return _encode_on_ray(tasks, encoder, concurrency=concurrency)


def _encode_here(tasks: list[dict[str, Any]], encoder: dict[str, Any]) -> list[LayerPart]:
    shards, parts = _ShardEncoder(**encoder), []
    with stage("encode", len(tasks)) as advance:
        for task in tasks:
            parts.append(shards.encode(Path(task["records"]), Path(task["part"])))
            advance(len(parts))
    return parts


def _encode_on_ray(tasks: list[dict[str, Any]], encoder: dict[str, Any], *, concurrency: int) -> list[LayerPart]:
    import ray

    encoded = map_batches(
        ray.data.from_items(tasks, override_num_blocks=len(tasks)),
        _ShardEncoder,
        fn_constructor_kwargs=encoder,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(concurrency, len(tasks))),
        # An actor has one CPU, but its tokenizer would start a thread on every core.
        runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
    )
    with explain_deaths("a worker that was encoding", num_workers=concurrency):
        rows = sorted(streamed(encoded, "encode", len(tasks)), key=lambda row: row["number"])
    return [LayerPart(**{field.name: row[field.name] for field in fields(LayerPart)}) for row in rows]


class _ShardEncoder:
    """Holds the tokenizer and encodes one shard per call; as a Ray Data actor, one shard per batch."""

    def __init__(self, *, tokenizer: ModelTokenizer, spec: EncodingSpec, manifest: DatasetManifest):
        self._tokenizer = tokenizer.loaded
        self._spec = spec
        self._manifest = manifest

    def encode(self, records: Path, part: Path) -> LayerPart:
        forms: Any = self._manifest.forms
        return encode_part(
            records, part, forms=forms, spec=self._spec, space=self._manifest.space, tokenizer=self._tokenizer
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        part = self.encode(Path(batch["records"][0]), Path(batch["part"][0]))
        row = {"number": int(batch["number"][0]), **part.__dict__}
        return {key: [value] for key, value in row.items()}


def _limit_of(spec: EncodingSpec, model: str) -> LengthLimit:
    wanted = spec.encoding.max_length
    most, cut = within_positions(wanted, model), "set encoding.overlong=cut_prompt to shorten scenarios"
    if most < wanted:
        return LengthLimit(most, f"the {most} positions of {model!r}", f"use a model with more positions, or {cut}")
    return LengthLimit(wanted, f"encoding.max_length={wanted}", f"raise it, or {cut}")


def refuse_if_mostly_rejected(
    parts: Sequence[LayerPart], limit: LengthLimit, max_reject_fraction: float, say: Say
) -> None:
    """Say how many pairs were left out and why. Raises UserError if too few are left."""
    kept, rejected = sum(p.rows for p in parts), sum(p.rejected for p in parts)
    with_control_tokens = sum(p.with_control_tokens for p in parts)
    with_refused_turns = sum(p.with_refused_turns for p in parts)
    overlong, pairs = rejected - with_control_tokens - with_refused_turns, kept + rejected
    if overlong:
        say(f"{overlong} of {pairs} pairs are longer than {limit.name} and were left out")
    if with_control_tokens:
        say(f"{with_control_tokens} of {pairs} pairs contain control tokens (such as the EOS) and were left out")
    if with_refused_turns:
        say(f"{with_refused_turns} of {pairs} pairs have turns that the chat template refuses and were left out")
    if kept and rejected <= max_reject_fraction * pairs:
        return
    if with_refused_turns > max(overlong, with_control_tokens):
        raise UserError(
            f"prompt.template=chat: the model's chat template refuses the turns (such as a system message) of "
            f"{with_refused_turns} of {pairs} pairs: use prompt.template=plain, or write each dialogue as one user "
            "message; `pft show prompt` says what the template refuses"
        )
    if with_control_tokens > overlong:
        raise UserError(
            f"{with_control_tokens} of {pairs} pairs contain control tokens of the model in their texts: use "
            "plain texts without the markers of a chat template"
        )
    raise UserError(f"{limit.name} leaves {kept} of {pairs} pairs: {limit.advice}")
