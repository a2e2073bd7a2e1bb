"""Encode the data of a run: in a process that has the tokenizer loaded anyway, or in many for a large data set."""

from pathlib import Path

from pft_core.data import DatasetManifest
from pft_core.encoding import EncodingSpec, TokenizerFacts
from pipelines.encode import ModelTokenizer
from pipelines.encode.job import PAIRS_ENCODED_HERE, ensure_layer
from pipelines.jobs import explain_deaths
from pipelines.train.resolved_run import ResolvedRun, RunLayers


def encode_layers(run: ResolvedRun, *, facts: TokenizerFacts | None = None) -> RunLayers:
    """Encode the data for this tokenizer, prompt style and objective if it is not; call it under the run's lock.

    facts: facts of the tokenizer, if known; otherwise the tokenizer is loaded here.
    Raises UserError if too few pairs fit.
    """
    config = run.config
    facts = facts or run.tokenizer.facts(config.prompt)

    def layer(data: str, manifest: DatasetManifest) -> str:
        folder = ensure_layer(
            Path(data).resolve(),
            manifest,
            tokenizer=run.tokenizer,
            facts=facts,
            spec=EncodingSpec(facts.style, config.encoding, run.objective.view),
            max_reject_fraction=config.max_reject_fraction,
            concurrency=config.scaling.num_workers,
        )
        return str(folder)

    validation = None
    if run.validation is not None and config.train.validate_every:
        validation = layer(str(config.validation_data), run.validation)
    return RunLayers(layer(str(config.data), run.manifest), validation, facts.style)


def encode_if_large(run: ResolvedRun) -> RunLayers | None:
    """Encode a large data set with Ray Data; return None for a small one, which the first worker encodes.

    Raises Ray's exception around a UserError.
    """
    import ray

    if all(manifest.pairs_out <= PAIRS_ENCODED_HERE for _, manifest in run.inputs):
        return None
    config = run.config
    # In another process, since loading a tokenizer imports torch.
    with explain_deaths("the worker that reads the tokenizer"):
        facts = ray.get(ray.remote(num_cpus=0)(ModelTokenizer.facts).remote(run.tokenizer, config.prompt))
    return encode_layers(run, facts=facts)
