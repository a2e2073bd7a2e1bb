"""The whole measurement: training beside TRL, then evaluation beside plain transformers, as one result."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.real.evaluation import measure_evaluation
from benchmarks.real.training import measure_training
from pipelines.config import RunConfig

TEST_ITEMS = 208  # of VCD's test file


def measure(
    config: RunConfig, test: str, folder: Path, *, num_items: int, train_s: float, evaluate_s: float, naive_s: float
) -> dict[str, Any]:
    """Measure training on the config's data, and evaluation on the prepared data `test`.

    num_items: the items whose evaluation is to be timed or extrapolated. train_s, evaluate_s, naive_s: wall-clock
    seconds after which no further round or group starts; naive_s is a part of evaluate_s.
    """
    training = measure_training(config, limit_s=train_s)
    evaluation = measure_evaluation(
        config, test, folder / "adapter", num_items=num_items, limit_s=evaluate_s, naive_s=naive_s
    )
    settings = {
        "model": config.model,
        "precision": config.train.precision,
        "threads": config.scaling.threads_per_worker,
        "tokens_per_pass": config.train.tokens_per_microbatch,
        "versions": {name: version(name) for name in ("transformers", "peft", "trl", "accelerate")},
    }
    return training | evaluation | settings | {"machine": harness.machine()}
