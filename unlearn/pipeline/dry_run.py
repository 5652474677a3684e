"""A recipe checked without training: what is there, what is missing, which stages would run and at what cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from unlearn.errors import UnlearnError
from unlearn.pipeline.plan import RunPlan, plan_of
from unlearn.pipeline.run import Run
from unlearn.pipeline.stages import stages_of

Result = TypeVar("Result")


@dataclass(frozen=True)
class DryRun:
    """What a run of a recipe would find.

    Attributes:
        recipe: its name.
        stages: whether each stage that the recipe has is finished in the run folder, in their order.
        rows: training rows; None where the data can not be read.
        test_rows: test rows; None where the data can not be read.
        parameters: of the model; None where it can not be built.
        problems: what keeps the recipe from running, one line each; a later check may find more once they are solved.
        plan: layers and costs, as ``unlearn plan`` counts them; None with a problem, and of a certified head.
    """

    recipe: str
    stages: dict[str, bool]
    rows: int | None
    test_rows: int | None
    parameters: int | None
    problems: tuple[str, ...]
    plan: RunPlan | None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able data."""
        plan = None if self.plan is None else self.plan.to_dict()
        return {**vars(self), "problems": list(self.problems), "plan": plan}


def dry_run(run: Run) -> DryRun:
    """Check a run as far as possible without training; nothing is written.

    Data and model are each looked at even where the other is not there, so that one call tells both.

    >>> from pathlib import Path
    >>> from unlearn.recipe import load_recipe
    >>> found = dry_run(Run(Path("runs/none"), load_recipe("digits-quick")))
    >>> found.rows, found.test_rows, found.parameters, found.problems, list(found.stages)[0]
    (1438, 359, 4810, (), 'train')
    """
    problems: list[str] = []

    def tried(part: Callable[[], Result]) -> Result | None:
        try:
            return part()
        except UnlearnError as error:
            if str(error) not in problems:
                problems.append(str(error))
            return None

    rows = tried(lambda: len(run.data))
    test_rows = tried(lambda: len(run.test))
    parameters = tried(lambda: sum(p.numel() for p in run.build().parameters()))
    plan = None
    if not problems:
        certified = run.recipe.certified is not None
        plan = tried(run.check if certified else lambda: plan_of(run, measure=False))
    return DryRun(run.recipe.name, stages_of(run), rows, test_rows, parameters, tuple(problems), plan)
