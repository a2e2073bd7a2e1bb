"""Registry of metrics by name, in the order of columns and captions.

To add one, write its measure and an entry here, or call `METRICS.add` in a plugin file.
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
        "the one option that the policy chooses shows the requested pole",
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
        "0 if any chosen option is wrong, else the share of the requested pole's options that are chosen",
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
        "the same item is answered right under the first pole and under the second pole",
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
        "the chosen pole changes when the other pole is requested",
        "pair",
        measures.flip,
        best="highest",
    ),
)
METRICS.add(
    "leak",
    Metric(
        "Leak",
        "how far the policy, without a condition, has moved from its base (0 is best)",
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
        "share of the chosen options that show the requested pole",
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
        "share of the requested pole's options that are chosen",
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
        "share of the answers that name no option; they count as wrong",
        "pole",
        measures.unparsed,
        best="lowest",
        has_baseline=False,
        in_evaluation=False,  # it is a column of every row
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
        "capability of the base minus capability after training, item by item: a positive value is a loss",
        "run",
        None,
        best="lowest",
    ),
)
METRICS.add(
    "pairs_per_s",
    Metric(
        "Pairs/s",
        "training pairs per second: the mean over seeds of each run's median step",
        "run",
        measures.pairs_per_s,
        is_share=False,
    ),
)
METRICS.add(
    "both_right_area",
    Metric(
        "Area under both right",
        "mean both right over the varied setting, from its smallest to its largest value, by the trapezoid rule",
        "run",
        None,
        best="highest",
    ),
)


def metrics_where(**attributes: object) -> list[str]:
    """Return the names of the metrics with these attributes, such as `is_right=True`, in order."""
    return [name for name in METRICS if all(getattr(METRICS[name], key) == value for key, value in attributes.items())]


def pairs_first(names: list[str]) -> list[str]:
    """Return the names with metrics of pairs first, since they judge a policy for both poles."""
    return sorted(names, key=lambda name: METRICS[name].of != "pair")
