"""What the words of single options would choose, without their scenario."""

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
_INVERSE_REGULARISATIONS = (0.1, 1.0, 10.0, 100.0, 1000.0)
_STEPS = 1000  # of the solver, at most
_WORD = r"\w+|[^\w\s]+"  # also signs and single letters: an option may consist of nothing else


def bag_of_words(
    train_records: Sequence[PairedExample], test_records: Sequence[PairedExample], *, seed: int = 0, form: Form = "one"
) -> list[Outcome]:
    """Choose by the words and word pairs of each option alone; a probe per axis has learnt whose pole they are.

    `one`: the option most likely to show the pole; `all`: each that is as likely as not to show it, or else that one.
    seed: of the cross-validation's folds. Raises UserError for an axis that the training records cannot teach.
    """
    axes = dict.fromkeys(record.axis for record in test_records)
    probes = {axis: fit_probe([r for r in train_records if r.axis == axis], axis, seed=seed) for axis in axes}
    return [outcome_of(record, form, choose(_chances(probes[record.axis], record), form)) for record in test_records]


def fit_probe(records: Sequence[PairedExample], axis: str, *, seed: int) -> Any:
    """Fit TF-IDF of words and word pairs, then logistic regression, to tell first-pole options from the others.

    Its strength of regularisation is the one with the best likelihood on scenarios held out of these records.
    """
    rows = [(option.text, option.side == 0, record.scenario) for record in records for option in record.options]
    num_scenarios = len({scenario for _, _, scenario in rows})
    num_poles = len({is_first for _, is_first, _ in rows})
    if num_scenarios < 2 or num_poles < 2:
        raise UserError(
            f"axis {axis!r}: bag_of_words needs training records of 2 scenarios and both poles, and finds "
            f"scenarios: {num_scenarios}, poles: {num_poles}: add records of this axis, or leave this method out"
        )
    # As objects: an array of strings takes the room of the longest for each.
    texts_N, is_first_N, scenarios_N = np.array(rows, dtype=object).T
    is_first_N = is_first_N.astype(bool)
    folds = GroupKFold(min(_FOLDS, num_scenarios), shuffle=True, random_state=seed).split(texts_N, groups=scenarios_N)
    losses = np.sum([_held_out_losses(texts_N, is_first_N, kept, held_out) for kept, held_out in folds], axis=0)
    weakness = _INVERSE_REGULARISATIONS[int(losses.argmin())]
    return make_pipeline(_words(), LogisticRegression(C=weakness, max_iter=_STEPS)).fit(texts_N, is_first_N)


def _held_out_losses(
    texts_N: NDArray[np.object_], is_first_N: NDArray[np.bool_], kept: NDArray[np.int64], held_out: NDArray[np.int64]
) -> list[float]:
    """Fit on the kept rows with each regularisation; return the mean log loss of each on the rows held out."""
    words = _words()
    vectors, unseen = words.fit_transform(texts_N[kept]), words.transform(texts_N[held_out])
    losses = []
    for weakness in _INVERSE_REGULARISATIONS:
        model = LogisticRegression(C=weakness, max_iter=_STEPS).fit(vectors, is_first_N[kept])
        losses.append(float(log_loss(is_first_N[held_out], model.predict_proba(unseen), labels=[False, True])))
    return losses


def _words() -> Any:
    return TfidfVectorizer(token_pattern=_WORD, ngram_range=(1, 2), sublinear_tf=True)


def _chances(probe: Any, record: PairedExample) -> list[tuple[float, str]]:
    """Each option's chance of showing the first pole, with its text."""
    texts = [option.text for option in record.options]
    return [(float(chance), text) for chance, text in zip(probe.predict_proba(texts)[:, 1], texts, strict=True)]


def choose(chances: Sequence[tuple[float, str]], form: Form) -> tuple[Choice, Choice]:
    """Choose under the first and the second pole. chances: of the first pole, with the option's text, as shown.

    Options of equal chance are told apart by their text: the place where they stand does not count.
    """
    ranked = sorted(range(len(chances)), key=lambda i: chances[i])
    first, second = frozenset(ranked[-1:]), frozenset(ranked[:1])
    if form == "one":
        return first, second
    return (
        frozenset(i for i in ranked if chances[i][0] >= 0.5) or first,
        frozenset(i for i in ranked if chances[i][0] <= 0.5) or second,
    )
