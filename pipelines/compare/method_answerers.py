"""Answerers of policies that are shown solved examples or steered, with notes on how they were asked."""

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pft_core.data import read_records
from pft_core.evaluation import Answerer, SteeringVectors, by_history, by_steering, contrast_vectors, sweep
from pft_core.files import read_json, write_json
from pft_core.policies import base_digest, load_policy, load_tokenizer
from pft_core.scoring import BranchScorer
from pipelines.evaluate import AnsweringJob, answerers

HISTORY_LENGTH = 3  # solved examples; the paper infers a preference from as many
SWEEP_PER_AXIS = 20  # validation records per axis that choose layer and multiplier
MULTIPLIERS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
HISTORY_NAME, SWEEP_NAME = "history.json", "sweep.json"


def history_answerers(job: AnsweringJob, *, train: Path, seed: int, run_dir: Path) -> tuple[Answerer, Answerer | None]:
    """Show the policy solved training examples of the preference; history.json counts the examples per question."""
    answer, base = answerers(job)
    examples = list(read_records(train))

    def answer_and_count(questions: Any) -> Any:
        shown: Counter[int] = Counter()
        answers = by_history(
            questions, answer=answer, style=job.settings.style, space=job.settings.space, examples=examples,
            num_examples=HISTORY_LENGTH, seed=seed, shown=shown,
        )  # fmt: skip
        write_json(run_dir / HISTORY_NAME, {"questions_by_examples_shown": shown})
        return answers

    return answer_and_count, base


def steering_answerers(
    job: AnsweringJob, *, train: Path, validation: Path, run_dir: Path
) -> tuple[Answerer, Answerer | None]:
    """Steer the base by shifting its activations, with the layer and multiplier that do best on validation records.

    steering.safetensors holds the vectors, sweep.json the tried settings.
    """
    tokenizer = load_tokenizer(job.ref.base)
    model = load_policy(job.ref.base, None, None, precision=job.precision, device=job.device)
    layers = tuple(range(model.config.num_hidden_layers))
    directions = contrast_vectors(
        list(read_records(train)), model=model, tokenizer=tokenizer, settings=job.settings, layers=layers
    )
    vectors = SteeringVectors(layers, directions, job.ref.template_digest, base_digest(job.ref.base))
    vectors.save(run_dir / "steering.safetensors")
    how: dict[str, Any] = {
        "scorer": BranchScorer(model, backend="separate"),
        "tokenizer": tokenizer,
        "settings": job.settings,
        "vectors": vectors,
    }
    best, tried = sweep(list(read_records(validation, per_axis=SWEEP_PER_AXIS)), multipliers=MULTIPLIERS, **how)
    write_json(run_dir / SWEEP_NAME, {"chosen": asdict(best), "tried": [asdict(point) for point in tried]})
    return partial(by_steering, layer=best.layer, multiplier=best.multiplier, **how), None


def notes_on(run_dir: Path) -> list[str]:
    """Return notes for the reader on how this run was asked."""
    notes = []
    if (run_dir / SWEEP_NAME).is_file():
        chosen = read_json(run_dir / SWEEP_NAME, what="a sweep of steering")["chosen"]
        edge = " (the largest tried)" if chosen["multiplier"] == max(MULTIPLIERS) else ""
        notes.append(
            f"steered at layer {chosen['layer']} with multiplier {chosen['multiplier']:g}{edge}, chosen on validation "
            "records by right choices only; whether the steered model still writes well was not measured"
        )
    if (run_dir / HISTORY_NAME).is_file():
        counts = {
            int(n): num
            for n, num in read_json(run_dir / HISTORY_NAME, what="a count of examples shown")[
                "questions_by_examples_shown"
            ].items()
        }
        if few := sum(num for n, num in counts.items() if n < HISTORY_LENGTH):
            notes.append(f"{few} of {sum(counts.values())} questions had room for fewer than {HISTORY_LENGTH} examples")
    return notes
