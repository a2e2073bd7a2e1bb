"""Files of outcomes, one per item: every figure of a report follows from them."""

import json
from collections.abc import Sequence
from pathlib import Path

from pft_core.errors import UserError
from pft_core.evaluation.metrics import Outcome
from pft_core.files import write_lines

OUTCOMES_NAME = "outcomes.jsonl"  # in the folder of every evaluation: an outcome a line


def write_outcomes(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write the outcomes to a file atomically, one per line; return the file."""
    write_lines(folder / OUTCOMES_NAME, (outcome.to_json() for outcome in outcomes))
    return folder / OUTCOMES_NAME


def read_outcomes(path: Path) -> list[Outcome]:
    """Read a file that `write_outcomes` wrote. Raises UserError if it is missing or holds anything else."""
    try:
        return [Outcome.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: the outcomes of the run are missing; run it again with --fresh") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a file of outcomes ({error}); run it again with --fresh") from None
