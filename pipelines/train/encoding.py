"""The encoded data of a run: made on the cluster while the training workers start, as both import for long."""

from pathlib import Path
from typing import Any

from pft_core.data import DatasetManifest
from pft_core.encoding import EncodingSpec, TokenizerFacts
from pipelines.console import console
from pipelines.encode.job import PAIRS_ENCODED_HERE, Say, ensure_layer, read_tokenizer
from pipelines.train.resolved_run import Layers, ResolvedRun


def encoded(run: ResolvedRun, *, tokenizer: TokenizerFacts | None = None, say: Say = console.print) -> Layers:
    """Make sure that the data is encoded for this tokenizer, wording and objective; call it under the run's lock.

    tokenizer: what is known of it already; None: it is loaded here, with all that it imports. say: told what a person
    should know. Raises UserError where too few pairs fit.
    """
    config = run.config
    facts = tokenizer or read_tokenizer(str(config.model), config.prompt)

    def layer(data: str, manifest: DatasetManifest) -> str:
        folder = ensure_layer(
            Path(data).resolve(),
            manifest,
            model=str(config.model),
            tokenizer=facts,
            spec=EncodingSpec(facts.style, config.encoding, run.objective.view),
            max_reject_fraction=config.max_reject_fraction,
            concurrency=config.scaling.num_workers,
            say=say,
        )
        return str(folder)

    validation = None
    if run.validation is not None and config.train.validate_every:
        validation = layer(str(config.validation_data), run.validation)
    return Layers(layer(str(config.data), run.manifest), validation, facts.style)


def start_encoding(run: ResolvedRun) -> Any:
    """Return the reference to what `encoded_apart` returns: a small data set is encoded while the caller goes on.

    A large one is encoded by many, before this returns. Raises what Ray makes of a UserError.
    """
    import ray

    if all(manifest.pairs_out <= PAIRS_ENCODED_HERE for _, manifest in run.inputs):
        return ray.remote(num_cpus=0)(encoded_apart).remote(run)
    config = run.config
    facts = ray.get(ray.remote(num_cpus=0)(read_tokenizer).remote(str(config.model), config.prompt))
    return ray.put((encoded(run, tokenizer=facts), []))


def encoded_apart(run: ResolvedRun) -> tuple[Layers, list[str]]:
    """As `encoded`, in a process that no person sees: returns what it has to say, too."""
    notes: list[str] = []
    return encoded(run, say=notes.append), notes
