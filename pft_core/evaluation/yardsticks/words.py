"""The bag-of-words yardstick: choose by the words of each option alone, without the scenario."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline

from pft_core.data import Form, PairedExample
from pft_core.errors import UserError
from pft_core.evaluation.metrics import Choice, Outcome
from pft_core.evaluation.yardsticks.position import outcome_of

_FOLDS = 5
_INVERSE_REGULARIZATIONS = (0.1, 1.0, 10.0, 100.0, 1000.0)
_MAX_STEPS = 1000  # of the solver
_WORD = r"\w+|[^\w\s]+"  # includes symbols and single letters: an option may contain nothing else


def bag_of_words(
    train_records: Sequence[PairedExample], test_records: Sequence[PairedExample], *, seed: int = 0, form: Form = "one"
) -> list[Outcome]:
    """Choose by the words and word pairs of each option alone; a probe per axis has learned which pole they show.

    Form `one`: the option most likely to show the pole. Form `all`: every option with a probability of at least 1/2, or
    the most likely one if there is none. seed: that of the cross-validation folds. Raises UserError if the training
    records do not suffice for an axis.
    """
    axes = dict.fromkeys(record.axis for record in test_records)
    probes = {axis: fit_probe([r for r in train_records if r.axis == axis], axis, seed=seed) for axis in axes}
    return [
        outcome_of(record, form, choose(_probabilities(probes[record.axis], record), form)) for record in test_records
    ]


def fit_probe(records: Sequence[PairedExample], axis: str, *, seed: int) -> Any:
    """Fit TF-IDF of words and word pairs, then logistic regression, to tell first-pole options from the others.

    Cross-validation over scenarios picks the regularization with the best held-out likelihood.
    """
    rows = [(option.text, option.side == 0, record.scenario) for record in records for option in record.options]
    num_scenarios = len({scenario for _, _, scenario in rows})
    num_poles = len({is_first for _, is_first, _ in rows})
    if num_scenarios < 2 or num_poles < 2:
        raise UserError(
            f"axis {axis!r}: bag_of_words needs training records with at least 2 scenarios and both poles, but got "
            f"scenarios: {num_scenarios}, poles: {num_poles}: add records of this axis, or remove this method"
        )
    # An object array, because an array of strings gives each the space of the longest.
    texts_N, is_first_N, scenarios_N = np.array(rows, dtype=object).T
    is_first_N = is_first_N.astype(bool)
    folds = GroupKFold(min(_FOLDS, num_scenarios), shuffle=True, random_state=seed).split(texts_N, groups=scenarios_N)
    losses = np.sum([_held_out_losses(texts_N, is_first_N, kept, held_out) for kept, held_out in folds], axis=0)
    inverse = _INVERSE_REGULARIZATIONS[int(losses.argmin())]
    return make_pipeline(_words(), LogisticRegression(C=inverse, max_iter=_MAX_STEPS)).fit(texts_N, is_first_N)


def _held_out_losses(
    texts_N: NDArray[np.object_], is_first_N: NDArray[np.bool_], kept: NDArray[np.int64], held_out: NDArray[np.int64]
) -> list[float]:
    """Fit on the kept rows with each regularization strength; return the mean log loss of each on the held-out rows."""
    words = _words()
    vectors, unseen = words.fit_transform(texts_N[kept]), words.transform(texts_N[held_out])
    losses = []
    for inverse in _INVERSE_REGULARIZATIONS:
        model = LogisticRegression(C=inverse, max_iter=_MAX_STEPS).fit(vectors, is_first_N[kept])
        losses.append(float(log_loss(is_first_N[held_out], model.predict_proba(unseen), labels=[False, True])))
    return losses


def _words() -> Any:
    return TfidfVectorizer(token_pattern=_WORD, ngram_range=(1, 2), sublinear_tf=True)


def _probabilities(probe: Any, record: PairedExample) -> list[tuple[float, str]]:
    """Return the probability that each option shows the first pole, with its text."""
    texts = [option.text for option in record.options]
    return [
        (float(probability), text) for probability, text in zip(probe.predict_proba(texts)[:, 1], texts, strict=True)
    ]


def choose(probabilities: Sequence[tuple[float, str]], form: Form) -> tuple[Choice, Choice]:
    """Choose under the first and the second pole. probabilities: that each option shows the first pole, with its text.

    Options with the same probability are ordered by their text, so that their place does not count.
    """
    ranked = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    first, second = frozenset(ranked[-1:]), frozenset(ranked[:1])
    if form == "one":
        return first, second
    return (
        frozenset(i for i in ranked if probabilities[i][0] >= 0.5) or first,
        frozenset(i for i in ranked if probabilities[i][0] <= 0.5) or second,
    )
