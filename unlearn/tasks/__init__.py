"""Losses with their curvature in output space, by name."""

from unlearn.errors import InputError, did_you_mean
from unlearn.tasks.own_loss import OwnLoss
from unlearn.tasks.sigmoid import Sigmoid
from unlearn.tasks.softmax import Classification, kl_divergence, margins, phi
from unlearn.tasks.squared import Regression
from unlearn.tasks.task import Task
from unlearn.tasks.tokens import IGNORED, LanguageModelling

__all__ = [
    "IGNORED",
    "Classification",
    "LanguageModelling",
    "OwnLoss",
    "Regression",
    "Sigmoid",
    "Task",
    "get_task",
    "kl_divergence",
    "margins",
    "phi",
]

_ALL: tuple[Task, ...] = (
    Classification(),
    Regression(),
    Sigmoid("binary"),
    Sigmoid("multi-label"),
    LanguageModelling(),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def get_task(task: str | Task) -> Task:
    """Return a task by name, or the given task itself.

    Names: ``classification``, ``regression``, ``binary``, ``multi-label``, ``language-modelling``.

    Raises:
        InputError: unknown name.

    >>> get_task("multi-label").name
    'multi-label'
    """
    if not isinstance(task, str):
        return task
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; {did_you_mean(task, TASKS)}; or pass an OwnLoss")
    return TASKS[task]
