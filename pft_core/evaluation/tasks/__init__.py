"""Evaluation tasks: their items, the scoring of answers, and report rows."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.evaluation.tasks.capability import (
        CapabilityAnswer,
        CapabilityItem,
        ask_items,
        drop,
        losses,
        mean_with_interval,
        position_baseline,
        read_items,
        scores,
    )
    from pft_core.evaluation.tasks.registry import TASKS
    from pft_core.evaluation.tasks.task import Reply, Task, TaskItem
    from pft_core.evaluation.tasks.task_answers import answer_items
    from pft_core.evaluation.tasks.task_scores import reply_line, scored, task_rows
else:
    __getattr__ = lazy_exports(__name__)
