"""Losses with their curvature in output space, by name."""

from unlearn.data.tokens import IGNORED
from unlearn.errors import InputError, did_you_mean, some
from unlearn.tasks.own_loss import OwnLoss
from unlearn.tasks.sigmoid import Sigmoid
from unlearn.tasks.softmax import Classification, kl_divergence, margins, phi
from unlearn.tasks.squared import Regression
from unlearn.tasks.task import Task
from unlearn.tasks.tokens import LanguageModelling

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
_METHODS = (
    "check",
    "loss",
    "output_gradient",
    "fisher_root",
    "sampled_gradient",
    "fisher_product",
    "divergence",
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def get_task(task: str | Task) -> Task:
    """Return a task by name, or the given task itself.

    Names: ``classification``, ``regression``, ``binary``, ``multi-label``, ``language-modelling``.

    Raises:
        InputError: unknown name, or an object without the curvature that a task has.

    >>> get_task("multi-label").name
    'multi-label'
    """
    if not isinstance(task, str):
        missing = [name for name in _METHODS if not callable(getattr(task, name, None))]
        if missing or not isinstance(getattr(task, "name", None), str):
            raise InputError(
                f"task {type(task).__name__} has no curvature: it lacks {some(missing or ['name'])}; wrap its loss in "
                "an OwnLoss, which takes its derivatives by autograd"
            )
        return task
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; {did_you_mean(task, TASKS)}; or pass an OwnLoss")
    return TASKS[task]
