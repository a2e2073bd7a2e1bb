"""Registry of tasks by name. To add one, write its items and its score and an entry, here or in a plugin file."""

from pft_core.evaluation.tasks.task import Task
from pft_core.registry import Registry

# The registered tasks, by the name that `pft evaluate --task` takes.
TASKS: Registry[Task] = Registry("task", Task)

TASKS.add("choices", Task("Choices", "prepared records under both poles and without a condition: the metrics' rows"))
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
