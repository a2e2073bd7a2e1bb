"""The encoded data of a run: by the process that has the tokenizer loaded anyway, or by many for a large data set."""

from pathlib import Path

from pft_core.data import DatasetManifest
from pft_core.encoding import EncodingSpec, TokenizerFacts
from pipelines.console import console
from pipelines.encode import ModelTokenizer
from pipelines.encode.job import PAIRS_ENCODED_HERE, Say, ensure_layer
from pipelines.jobs import deaths_explained
from pipelines.train.resolved_run import ResolvedRun, RunLayers


def encoded(run: ResolvedRun, *, facts: TokenizerFacts | None = None, say: Say = console.print) -> RunLayers:
    """Make sure that the data is encoded for this tokenizer, wording and objective; call it under the run's lock.

    facts: of the tokenizer, where they are known; else it is loaded here, with all that it imports. say: told what a
    person should know. Raises UserError where too few pairs fit.
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
            say=say,
        )
        return str(folder)

    validation = None
    if run.validation is not None and config.train.validate_every:
        validation = layer(str(config.validation_data), run.validation)
    return RunLayers(layer(str(config.data), run.manifest), validation, facts.style)


def encoded_beforehand(run: ResolvedRun) -> RunLayers | None:
    """Encode a large data set with Ray Data; None for a small one, which the first worker encodes.

    Raises what Ray makes of a UserError.
    """
    import ray

    if all(manifest.pairs_out <= PAIRS_ENCODED_HERE for _, manifest in run.inputs):
        return None
    config = run.config
    # In a process of its own: what loads a tokenizer imports torch.
    with deaths_explained("the worker that reads the tokenizer"):
        facts = ray.get(ray.remote(num_cpus=0)(ModelTokenizer.facts).remote(run.tokenizer, config.prompt))
    return encoded(run, facts=facts)
