"""Evaluation of a policy's choices: asking, parsing, metrics, statistics, yardsticks and steering."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.evaluation.answers import (
        MAX_OPTIONS_FOR_SUBSETS,
        Answer,
        Answerer,
        AnswerSettings,
        Question,
        ask,
        best,
        by_generation,
        by_likelihood,
        candidates,
        comparable,
        encode_options,
        probabilities_of,
        read_reply,
        score_branches,
        unscorable,
    )
    from pft_core.evaluation.data_check import check
    from pft_core.evaluation.history import by_history
    from pft_core.evaluation.intervals import MIN_CLUSTERS
    from pft_core.evaluation.kept_answers import BASE_ANSWERS_NAME, KeptAnswers
    from pft_core.evaluation.metrics import (
        METRICS,
        CountTable,
        EvaluationRow,
        Metric,
        Outcome,
        WeightedChoice,
        always_by_position,
        count_table,
        metrics_where,
        pairs_first,
        report_rows,
        value_of_run,
    )
    from pft_core.evaluation.outcome_files import OUTCOMES_NAME, read_outcomes, write_outcomes
    from pft_core.evaluation.pareto import front, hypervolume, knee
    from pft_core.evaluation.significance import holm, mcnemar, paired_t, sign_flip
    from pft_core.evaluation.steering import SteeringVectors, by_steering, contrast_vectors, steered, sweep
    from pft_core.evaluation.tasks import (
        TASKS,
        CapabilityAnswer,
        CapabilityItem,
        Reply,
        Task,
        TaskItem,
        answer_items,
        ask_items,
        drop,
        losses,
        mean_with_interval,
        position_baseline,
        read_items,
        reply_line,
        scored,
        scores,
        task_rows,
    )
    from pft_core.evaluation.yardsticks import YARDSTICKS, Yardstick
else:
    __getattr__ = lazy_exports(__name__)
