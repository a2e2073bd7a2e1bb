"""Compare our parser and metrics with the paper's evaluation: `python -m tests.parity.choices FILE`.

Every case of the file counts once. *agree*: it is well formed, and we parse the same choice and give the same score.
*unparsed*: it is malformed, and we leave it unparsed instead of guessing. *disagree*: anything else, such as a
well-formed case that we do not parse, another choice or score, or a malformed case in which we see a choice. Exits with
0 only if no case disagrees.
"""

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pft_core.data.records import LETTERS
from pft_core.evaluation.choices import parse_choice, parse_choices, score_all
from pft_core.evaluation.metrics.measures import right
from pft_core.evaluation.metrics.outcome import Outcome


def main(path: str) -> int:
    """Print each disagreement, then the counts as JSON; return the exit code."""
    cases = json.loads(Path(path).read_text(encoding="utf-8"))
    verdicts = [(verdict(case), case) for case in cases]
    for outcome, case in verdicts:
        if outcome == "disagree":
            print(f"disagree: {case['mode']} {case['output']!r} with {len(case['labels'])} options")
    counts = Counter(outcome for outcome, _ in verdicts)
    print(json.dumps({name: counts[name] for name in ("agree", "disagree", "unparsed")}))
    return 1 if counts["disagree"] else 0


def verdict(case: dict[str, Any]) -> str:
    """Return `agree`, `disagree` or `unparsed`."""
    choice, score = read(case)
    if not case["well_formed"]:
        return "unparsed" if choice is None else "disagree"
    same_score = math.isclose(score, case["score"], abs_tol=1e-12)
    return "agree" if choice == expected(case) and same_score else "disagree"


def read(case: dict[str, Any]) -> tuple[frozenset[int] | None, float]:
    """Return our choice, as a set of option indices (None: unparsed), and its score."""
    num_options = len(case["labels"])
    gold = frozenset(i for i, label in enumerate(case["labels"]) if label == case["target"])
    if case["mode"] == "all":
        choices = parse_choices(case["output"], num_options)
        return choices, score_all(choices, gold)
    choice = parse_choice(case["output"], num_options)
    chosen = None if choice is None else frozenset({choice})
    sides = tuple(int(i not in gold) for i in range(num_options))
    return chosen, right(Outcome("", "", "", "one", sides, (chosen, None)), 0)[0]


def expected(case: dict[str, Any]) -> frozenset[int]:
    """Return the paper's choice as a set of option indices."""
    letters = case["choices"] if case["mode"] == "all" else [case["choice"]]
    return frozenset(LETTERS.index(letter) for letter in letters)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
