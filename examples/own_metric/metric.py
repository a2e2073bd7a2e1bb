"""A metric of your own: how far the probability of the first pole moves when the preference changes."""

from pft_core.evaluation import METRICS, Metric, Outcome


def swing(outcome: Outcome) -> tuple[float, float]:
    """Return numerator and denominator for one item; a report divides the sums over all items.

    `outcome.probabilities` holds the probability of each option under the first and under the second pole. It is empty
    for generated replies: these items count neither above nor below the line.
    """
    if not outcome.probabilities:
        return 0.0, 0.0
    under_first, under_second = (
        sum(p for p, side in zip(shown, outcome.sides, strict=True) if side == 0) for shown in outcome.probabilities
    )
    return under_first - under_second, 1.0


METRICS.add(
    "swing",
    Metric("Swing", "how far the first pole's probability moves with the preference", of="pair", measure=swing),
)
