"""The condition-words yardstick: choose by the words that the stated preference shares with the item."""

import re
from collections.abc import Sequence

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from pft_core.data import Form, PairedExample, PreferenceSpace
from pft_core.evaluation.metrics import Choice, Outcome
from pft_core.evaluation.yardsticks.position import outcome_of

_ENDINGS = ("ing", "ed", "es", "s", "ly")


def condition_words(test: Sequence[PairedExample], space: PreferenceSpace, *, form: Form = "one") -> list[Outcome]:
    """Choose for each pole the option that shares the most word stems with the pole's name and description.

    Form `all` chooses the same single option. Options with equally many are ordered by their text. Of Yes and No it
    chooses Yes if the scenario shares more stems with this pole than with the other. The axes need two poles. Raises
    UserError if the space lacks an axis of the records.
    """
    return [outcome_of(record, form, (_choice(record, space, 0), _choice(record, space, 1))) for record in test]


def _choice(record: PairedExample, space: PreferenceSpace, side: int) -> Choice:
    poles = space.axis(record.axis).poles
    stated, opposite = (stems(f"{pole.name} {pole.description}") for pole in (poles[side], poles[1 - side]))
    texts = [option.text for option in record.options]
    if {text.lower() for text in texts} == {"yes", "no"}:
        words = stems(record.scenario)
        answer = "yes" if len(words & stated) > len(words & opposite) else "no"
        return frozenset(i for i, text in enumerate(texts) if text.lower() == answer)
    best = max(range(len(texts)), key=lambda i: (len(stems(texts[i]) & stated), texts[i]))
    return frozenset({best})


def stems(text: str) -> set[str]:
    """Return the distinct words of a text without common words such as "the", each without its ending."""
    return {_stem(word) for word in re.findall(r"[a-z]+", text.lower()) if word not in ENGLISH_STOP_WORDS}


def _stem(word: str) -> str:
    ending = next((ending for ending in _ENDINGS if word.endswith(ending) and len(word) - len(ending) >= 3), "")
    return word.removesuffix(ending).rstrip("e")  # "dare" as "dares" and "daring"
