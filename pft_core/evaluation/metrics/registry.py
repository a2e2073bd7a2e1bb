"""The metrics by name. The order is that of columns and captions; of equals, those of the pair lead.

Another metric is a file with its measure and one entry here, or `METRICS.add` in a file of a user's own.
"""

from pft_core.evaluation.metrics import measures
from pft_core.evaluation.metrics.metric import Metric
from pft_core.registry import Registry

# The registered metrics, by the name that reports and suites use.
METRICS: Registry[Metric] = Registry("metric", Metric)

METRICS.add(
    "one",
    Metric(
        "One",
        "the one option that the policy chooses shows the pole that was asked for",
        "pole",
        measures.right,
        best="highest",
        title="Multi-choice One",
        is_right=True,
        is_tested=True,
    ),
)
METRICS.add(
    "all",
    Metric(
        "All",
        "1 where exactly the options of the asked pole are chosen, 0 with a wrong one, else the share found",
        "pole",
        measures.subset_score,
        form="all",
        best="highest",
        title="Multi-choice All",
        is_right=True,
    ),
)
METRICS.add(
    "both_right",
    Metric(
        "Both right",
        "the same scenario is answered right under the first pole and under the second",
        "pair",
        measures.both_right,
        best="highest",
        is_right=True,
        is_tested=True,
    ),
)
METRICS.add(
    "flip",
    Metric(
        "Flip",
        "the chosen pole changes when the opposite one is asked for",
        "pair",
        measures.flip,
        best="highest",
    ),
)
METRICS.add(
    "leak",
    Metric(
        "Leak",
        "how far the policy, asked for no pole, has moved from its base (0 is best)",
        "base",
        measures.leak,
        best="lowest",
        is_size=True,
        has_baseline=False,
    ),
)
METRICS.add(
    "precision",
    Metric(
        "Precision",
        "share of the chosen options that show the asked pole",
        "pole",
        measures.precision,
        form="all",
        best="highest",
    ),
)
METRICS.add(
    "recall",
    Metric(
        "Recall",
        "share of the options of the asked pole that are chosen",
        "pole",
        measures.recall,
        form="all",
        best="highest",
    ),
)
METRICS.add(
    "f1",
    Metric("F1", "harmonic mean of precision and recall", "pole", measures.f1, form="all", best="highest"),
)
METRICS.add(
    "unparsed",
    Metric(
        "Unparsed",
        "share of the answers that name no option; they count as not right",
        "pole",
        measures.unparsed,
        best="lowest",
        has_baseline=False,
        in_evaluation=False,  # every row has it as a column
    ),
)
METRICS.add(
    "capability",
    Metric(
        "Capability",
        "share of right answers to general questions that name no preference",
        "run",
        None,
        best="highest",
        over_variants=True,
    ),
)
METRICS.add(
    "capability_drop",
    Metric(
        "Capability drop",
        "capability of the base minus that after training, item by item: positive is a loss",
        "run",
        None,
        best="lowest",
    ),
)
METRICS.add(
    "pairs_per_s",
    Metric(
        "Pairs/s",
        "pairs trained on in a second: the mean over seeds of each run's median step",
        "run",
        measures.pairs_per_s,
        is_share=False,
    ),
)
METRICS.add(
    "both_right_area",
    Metric(
        "Area under both right",
        "mean both right over what varies, from its smallest value to its largest, by the trapezoid rule",
        "run",
        None,
        best="highest",
    ),
)


def metrics_where(**said: object) -> list[str]:
    """Return the names of the metrics that say this of themselves, such as `is_right=True`, in order."""
    return [name for name in METRICS if all(getattr(METRICS[name], key) == value for key, value in said.items())]


def pairs_first(names: list[str]) -> list[str]:
    """Return the names with those of pairs in front: they are what a policy for both poles is judged by."""
    return sorted(names, key=lambda name: METRICS[name].of != "pair")
