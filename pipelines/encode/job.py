"""The encoded layer of a prepared data set: reused where a matching one exists, else encoded in bulk with Ray Data."""

from pathlib import Path
from typing import Any

from pft_core.data import DatasetManifest
from pft_core.encoding import (
    EncodingSpec,
    LayerPart,
    View,
    encode_part,
    finish_layer,
    layer_is_complete,
    layer_key,
    tokenizer_digest,
)
from pft_core.errors import UserError
from pft_core.prompts import PromptStyle, chat_frame
from pipelines.config import EncodingConfig, PromptConfig
from pipelines.console import console

# Encoded in the caller's process: a Ray Data actor takes longer to import transformers than to encode these.
PAIRS_ENCODED_HERE = 10_000


def prompt_style(config: PromptConfig, tokenizer: Any) -> PromptStyle:
    """Resolve the prompt section; a chat frame is cut out of the tokenizer's own template."""
    if config.template == "plain":
        return PromptStyle(config.condition_position, config.answer, condition=config.condition)
    if not tokenizer.chat_template:
        raise UserError(
            f"prompt.template=chat, but tokenizer {tokenizer.name_or_path!r} has no chat template: use plain"
        )
    return PromptStyle(config.condition_position, config.answer, chat_frame(tokenizer), config.condition)


def encoding_spec(
    prompt: PromptConfig, encoding: EncodingConfig, tokenizer: Any, *, view: View = "pft"
) -> EncodingSpec:
    return EncodingSpec(prompt_style(prompt, tokenizer), encoding.max_length, encoding.mask, encoding.overlong, view)


def ensure_layer(
    data: Path,
    *,
    model: str,
    prompt: PromptConfig,
    encoding: EncodingConfig,
    max_reject_fraction: float,
    concurrency: int,
    view: View = "pft",
) -> Path:
    """Return the folder of the layer for this data set, tokenizer, wording and view, encoded first where it is missing.

    Raises UserError when no pair, or less than `1 - max_reject_fraction` of them, fits `encoding.max_length`.
    """
    from pft_core.policies import load_tokenizer

    tokenizer = load_tokenizer(model)
    manifest = DatasetManifest.load(data)
    spec = encoding_spec(prompt, encoding, tokenizer, view=view)
    key = layer_key(
        data_digest=manifest.data_digest, tokenizer_digest=tokenizer_digest(tokenizer), spec=spec, space=manifest.space
    )
    folder = data / "encoded" / key
    if layer_is_complete(folder, key=key):
        console.print(f"encoded layer {key} reused")
        return folder
    console.print(f"encoding {manifest.pairs_out} pairs into layer {key}")
    folder.mkdir(parents=True, exist_ok=True)
    here = manifest.pairs_out <= PAIRS_ENCODED_HERE
    encode = _encode_here if here else _encode_on_ray
    parts = encode(data, folder, manifest, spec=spec, model=model, concurrency=concurrency)
    _refuse_if_mostly_overlong(parts, encoding.max_length, max_reject_fraction)
    finish_layer(folder, parts, key=key, view=view)
    return folder


def _tasks(data: Path, folder: Path, manifest: DatasetManifest) -> list[dict[str, Any]]:
    """What is to be encoded: for each shard its number, its file, and the file of its encoded part."""
    return [
        {"number": i, "records": str(data / shard.path), "part": str(folder / f"part-{i:05d}.arrow")}
        for i, shard in enumerate(manifest.shards)
    ]


def _encode_here(
    data: Path, folder: Path, manifest: DatasetManifest, *, spec: EncodingSpec, model: str, concurrency: int
) -> list[LayerPart]:
    encoder = _ShardEncoder(model=model, spec=spec, manifest=manifest)
    return [encoder.encode(Path(task["records"]), Path(task["part"])) for task in _tasks(data, folder, manifest)]


def _encode_on_ray(
    data: Path, folder: Path, manifest: DatasetManifest, *, spec: EncodingSpec, model: str, concurrency: int
) -> list[LayerPart]:
    import ray

    tasks = _tasks(data, folder, manifest)
    encoded = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _ShardEncoder,
        fn_constructor_kwargs={"model": model, "spec": spec, "manifest": manifest},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(concurrency, len(tasks))),
        # An actor has one CPU; its tokenizer would start a thread on every core.
        ray_remote_args={"runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}},
    )
    rows = sorted(encoded.take_all(), key=lambda row: row["number"])
    return [LayerPart(row["path"], row["sha256"], row["rows"], row["rejected"]) for row in rows]


class _ShardEncoder:
    """Keeps the tokenizer and encodes one shard a call; as a Ray Data actor, a shard a batch."""

    def __init__(self, *, model: str, spec: EncodingSpec, manifest: DatasetManifest):
        from pft_core.policies import load_tokenizer

        self._tokenizer = load_tokenizer(model)
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


def _refuse_if_mostly_overlong(parts: list[LayerPart], max_length: int, max_reject_fraction: float) -> None:
    kept, rejected = sum(p.rows for p in parts), sum(p.rejected for p in parts)
    if rejected:
        console.print(
            f"{rejected} of {kept + rejected} pairs are longer than encoding.max_length={max_length}: left out"
        )
    if kept == 0 or rejected > max_reject_fraction * (kept + rejected):
        raise UserError(
            f"encoding.max_length={max_length} leaves {kept} of {kept + rejected} pairs: raise it, or set "
            "encoding.overlong=cut_prompt to shorten scenarios"
        )
