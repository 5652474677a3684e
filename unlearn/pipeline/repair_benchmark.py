"""Our edits and every rival on one trained run and one change: how near each comes to retraining, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.pipeline.run import Run
from unlearn.pipeline.stages import run_stages
from unlearn.progress import track
from unlearn.repair import RIVALS, Changes, Edit, Rival, apply_changes
from unlearn.repair.method import COMPRESSED, DESCENT
from unlearn.training import TrainingRecord
from unlearn.verification import Measures, RetrainDistances, train_references

COSTS = (0.5, 1.0, 2.0, 3.0, 5.0)
OURS, OURS_FINAL = "ours", "ours, final only"
LEAST_REFERENCES = 2


@dataclass(frozen=True)
class Point:
    """One model and how near it came.

    Attributes:
        method: ``unedited``, ``ours``, ``ours, final only`` (the edit from final weights and record), or a rival.
        setting: what it was run with.
        key: the same for one setting over seeds, where epochs that follow from a cost may differ a little.
        seed: of noise and training, as a shift of the recipe's.
        cost: in training epochs, all of it.
        own_cost: the same without what all requests share.
        measures: distances to the coupled retrain; None where the method failed.
        note: how it was edited, or why it failed.
    """

    method: str
    setting: dict[str, float]
    key: str
    seed: int
    cost: float
    own_cost: float
    measures: Measures | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able data."""
        return asdict(self)


def known_wrong(data: Rows, count: int, action: str, seed: int) -> Changes:
    """Return the removal, or the relabelling to the truth, of ``count`` truly mislabelled rows drawn by the seed.

    Raises:
        InputError: the truth is not known, or there are not so many wrong rows.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.eye(3), torch.tensor([0, 1, 1])).with_truth(torch.tensor([0, 0, 1]))
    >>> known_wrong(rows, 1, "relabel", seed=0).relabelled
    {'1': 0}
    """
    if data.truth is None:
        raise InputError(f"the true labels of {data.name} are not known; leave rows out to act on the rows detected")
    wrong = (data.labels != data.truth).nonzero().flatten().tolist()
    if not 1 <= count <= len(wrong):
        raise InputError(f"rows is {count}, and {len(wrong)} rows have a wrong label; give 1 to {len(wrong)}")
    chosen = [wrong[k] for k in np.random.default_rng(seed).permutation(len(wrong))[:count]]
    if action == "remove":
        return Changes(removed=tuple(data.ids[i] for i in chosen))
    return Changes(relabelled={data.ids[i]: int(data.truth[i]) for i in chosen})


def detected(run: Run) -> Changes:
    """Return what the recipe's own detection decides on.

    Raises:
        InputError: it found nothing to act on.
    """
    run_stages(run, until="decide")
    changes = Changes.load(run.folder / "decisions.csv").on(run.data)
    if not changes.ids:
        raise InputError(f"nothing was found to act on in {run.folder}; give --rows, or a recipe with more noise")
    return changes


def measure_repairs(run: Run, changes: Changes, seed: int) -> tuple[list[Point], dict[str, float]]:
    """Make every edit and every rival's model at every setting of its grid, and measure them.

    Args:
        run: a trained run.
        changes: what is asked for.
        seed: as which the points are known.

    Returns:
        The points, and of the independent retrains the ``spread`` in phi and the ``floor`` in KL. A rival that is not
        meant for these changes, or needs what was not recorded, has no points; one that diverges has points that
        failed.
    """
    model, record = run.original
    references = train_references(
        model,
        changes.apply(run.data),
        record,
        count=max(LEAST_REFERENCES, run.recipe.verify.references),
        folder=run.folder / "references",
    )
    distances = RetrainDistances(model, run.data, changes, run.test, references)
    points = [Point("unedited", {}, "", seed, 0.0, 0.0, distances.measure(model))]
    for name, key, budget, edit in track(_edits(run, changes), "our edits", total=2 * (len(COSTS) + 1)):
        cost = edit.cost
        points.append(
            Point(
                name,
                {"budget": budget},
                key,
                seed,
                cost.total,
                cost.total - cost.factors,
                distances.measure(edit.model),
                "; ".join((edit.method, *edit.notes)),
            )
        )
    for rival, key, setting in track(_settings(run.data, changes, record), "rivals"):
        points.append(_point(run, changes, distances, rival, key, setting, seed))
    return points, {"spread": distances.spread, "floor": distances.floor}


def _edits(run: Run, changes: Changes) -> Iterator[tuple[str, str, float, Edit]]:
    """Yield our edits, with the words for them: from the final weights and the record alone, then at every budget.

    A budget that reaches no earlier snapshot than the one before it is left out. A compressed replay and a descent can
    be cut to any length, so their budget is what the cost leaves beside the head.
    """
    model, record = run.original
    last = {step: digest for step, digest in record.snapshots.items() if step == record.steps}
    alone = replace(record, order=None, snapshots=last)
    at = partial(apply_changes, model, run.data, changes, allow_empty_class=True)
    for name, known in ((OURS_FINAL, alone), (OURS, record)):
        started: set[int | None] = set()
        for cost in (0.0, *COSTS):
            edit = at(record=known, budget=cost)
            if edit.method in (COMPRESSED, DESCENT):
                rest = cost - (edit.cost.total - edit.cost.replay)
                if rest > 0 and (shorter := at(record=known, budget=rest)).method == edit.method:
                    yield name, f"whole cost {cost:g}", rest, shorter
                    continue
            elif edit.start_step in started:
                continue
            started.add(edit.start_step)
            yield name, f"budget {cost:g}", cost, edit


def _settings(data: Rows, changes: Changes, record: TrainingRecord) -> list[tuple[Rival, str, dict[str, float]]]:
    """Return every setting once, under the least cost whose grid has it."""
    found: dict[tuple[str, str], tuple[Rival, str, dict[str, float]]] = {}
    for rival in RIVALS.values():
        if not rival.handles(changes):
            continue
        for cost in COSTS:
            for setting in rival.grid(data, changes, record, cost):
                words = [f"{name} {value:g}" for name, value in setting.items() if name != "epochs"]
                key = ", ".join([f"cost {cost:g}"] * ("epochs" in setting) + words)
                found.setdefault((rival.name, key), (rival, key, setting))
    return list(found.values())


def _point(
    run: Run,
    changes: Changes,
    distances: RetrainDistances,
    rival: Rival,
    key: str,
    setting: dict[str, float],
    seed: int,
) -> Point:
    model, record = run.original
    measures: Measures | None = None
    cost = own = 0.0
    note = ""
    try:
        made = rival(model, run.data, changes, record, setting=setting, seed=run.recipe.train.train_seed + 1)
        cost, own = made.cost, made.own_cost
        measures = distances.measure(made.model)
    except InputError as error:  # a training that diverged, or weights with outputs that are not finite
        note = str(error)
    return Point(rival.name, setting, key, seed, cost, own, measures, note)
