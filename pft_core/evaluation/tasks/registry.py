"""The tasks by name. Another is a file with its items and score and one entry here, or in a file of a user's own."""

from pft_core.evaluation.tasks.task import Task
from pft_core.registry import Registry

# The registered tasks, by the name that `pft evaluate --task` takes.
TASKS: Registry[Task] = Registry("task", Task)

TASKS.add("choices", Task("Choices", "prepared records under both poles and under none: the metrics' rows"))
TASKS.add(
    "capability",
    Task(
        "Capability",
        "share of right answers to general questions that name no preference",
        items="pft_core.evaluation.tasks.capability:task_items",
        score="pft_core.evaluation.tasks.capability:right_letter",
        check="pft_core.evaluation.tasks.capability:read_items",
    ),
)
