"""Which setting of each method counts at which cost, and what it comes to over seeds.

At a cost of k epochs a method may use any setting whose own cost is at most k, with a slack of 10 % for whole steps
and small change (factors and importances that all requests share are stated apart). Our edits have no setting but the
budget, and take the largest that fits. A rival's setting is *chosen* for a seed by what it did on the other seeds: the
least geometric mean of its phi error on changed rows and its KL on kept rows, both to the coupled retrain there. That
is tuning on other requests of the same kind, with retrains at hand: it sees neither test rows nor the retrain it is
measured against. The *oracle* takes, for each seed and each column by itself, the best value of any setting: more than
any user could have, and an upper bound for the rival.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unlearn.errors import InputError
from unlearn.pipeline.repair_benchmark import COSTS, OURS, OURS_FINAL, Point, detected, known_wrong, measure_repairs
from unlearn.pipeline.reseeded import reseeded
from unlearn.pipeline.run import FORMAT, Run
from unlearn.pipeline.stages import check_has_stages, run_stages
from unlearn.progress import track
from unlearn.recipe import Recipe

SLACK = 1.1
SHOWN = ("phi error / spread", "KL", "cosine changed", "cosine test")
LARGER_IS_NEARER = ("cosine changed", "cosine test", "test accuracy", "accuracy - retrain")
_LEAST = 1e-12


def benchmark_repair(
    recipe: Recipe,
    folder: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    rows: int | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Train a recipe's originals and retrains, and measure our edits and every rival on them.

    Args:
        recipe: whose model, data, detection and action are taken.
        folder: where the runs go, one a seed; what is finished there is taken up.
        seeds: shifts of the recipe's seeds of noise and training.
        rows: how many truly mislabelled rows to act on; None for those that the recipe detects, or states.
        device: what to compute on.

    Returns:
        JSON-able facts: what was done, ``unedited`` and ``ours`` (mean and worst over seeds), ``levels`` (see
        :func:`frontier`), ``failed`` (number of settings of each rival that diverged) and every point.

    Raises:
        InputError: seeds that are none or named twice, rows that can not be meant, or a recipe without these stages.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"seeds are {list(seeds)}; give at least one, each once and 0 or more, such as 0,1,2")
    check_has_stages(recipe)
    action = recipe.repair.action
    if rows is not None and action not in ("remove", "relabel"):
        raise InputError(
            f"rows acts on mislabelled rows by remove or relabel, and recipe {recipe.name!r} has action {action!r}; "
            "leave rows out"
        )
    runs = {seed: Run(Path(folder) / f"seed-{seed}", reseeded(recipe, seed), device) for seed in seeds}
    if rows is not None:
        known = {seed: known_wrong(run.data, rows, action, run.recipe.train.train_seed) for seed, run in runs.items()}
    points: list[Point] = []
    changed, floors = [], []
    for seed, own in track(list(runs.items()), "seeds"):
        run = Run.create(own.folder, own.recipe, resume=True, device=device)
        run_stages(run, until="train")
        changes = detected(run) if rows is None else known[seed]
        found, floor = measure_repairs(run, changes, seed)
        points += found
        floors.append(floor)
        changed.append(len(changes.ids))
    failed = [p.method for p in points if p.measures is None]
    which = "known to be mislabelled" if rows is not None else "as detected"
    if run.stated is not None:
        which = "as the recipe says"
    return {
        "format": FORMAT,
        "recipe": recipe.name,
        "action": action,
        "which": which,
        "seeds": list(seeds),
        "rows": len(run.data),
        "changed": changed,
        "epochs": recipe.train.epochs,
        "floors": floors,
        "unedited": _whole("unedited", points),
        "ours": [row for row in (_whole(*kind) for kind in _kinds(points)) if row is not None],
        "levels": frontier(points),
        "failed": {name: failed.count(name) for name in dict.fromkeys(failed)},
        "points": [point.to_dict() for point in points],
    }


def _kinds(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """Return our edits by method and budget."""
    mine = [p for p in points if p.method in (OURS, OURS_FINAL)]
    kinds = dict.fromkeys((p.method, p.key) for p in mine)
    return [(method, [p for p in mine if (p.method, p.key) == (method, key)]) for method, key in kinds]


def _whole(method: str, points: Sequence[Point]) -> dict[str, Any] | None:
    """Return one setting of one method over seeds, with its cost of all."""
    mine = [p for p in points if p.method == method]
    row = _row(method, mine)
    if row is None:
        return None
    hows = dict.fromkeys(p.note.partition(";")[0] for p in mine)
    return {**row, "whole_cost": sum(p.cost for p in mine) / len(mine), "how": ", ".join(hows)}


def frontier(points: Sequence[Point], costs: Iterable[float] = COSTS) -> list[dict[str, Any]]:
    """Return for each cost the methods that have a setting within it.

    Returns:
        By cost ``cost``, ``chosen`` and ``oracle``: rows with ``method``, ``cost`` (own, mean over seeds),
        ``settings`` (one a seed; empty for the oracle) and by measure ``mean`` and ``worst``. A method without a
        setting in every seed has no row; with one seed no rival has one under ``chosen``.
    """
    seeds = sorted({point.seed for point in points})
    rivals = dict.fromkeys(p.method for p in points if p.method not in ("unedited", OURS, OURS_FINAL))
    levels = []
    for cost in costs:
        within = [p for p in points if p.measures is not None and p.own_cost <= SLACK * cost]
        ours = [
            _row(method, [_largest_budget([p for p in within if (p.method, p.seed) == (method, s)]) for s in seeds])
            for method in (OURS, OURS_FINAL)
        ]
        found = [(name, [p for p in within if p.method == name]) for name in rivals]
        chosen = [_row(name, [choose(mine, seed) for seed in seeds]) for name, mine in found]
        oracle = [_oracle(name, mine, seeds) for name, mine in found]
        levels.append(
            {
                "cost": cost,
                "chosen": [row for row in (*ours, *chosen) if row is not None],
                "oracle": [row for row in oracle if row is not None],
            }
        )
    return levels


def choose(points: Sequence[Point], seed: int) -> Point | None:
    """Return one rival's point of a seed whose setting did best on the other seeds; None where nothing says so.

    Args:
        points: of one rival, within a cost, none of them failed.
        seed: whose own measures are not looked at.
    """
    others = {point.seed for point in points} - {seed}
    scored = []
    for point in points:
        elsewhere = [_nearness(p) for p in points if p.seed != seed and p.key == point.key]
        if point.seed == seed and others and len(elsewhere) == len(others):
            scored.append((sum(elsewhere), point))
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def _nearness(point: Point) -> float:
    measures = point.measures or {}
    return sum(math.log(max(measures[name], _LEAST)) for name in ("phi error / spread", "KL kept"))


def _largest_budget(points: Sequence[Point]) -> Point | None:
    return max(points, key=lambda p: p.setting["budget"], default=None)


def _row(method: str, found: Sequence[Point | None]) -> dict[str, Any] | None:
    points = [p for p in found if p is not None and p.measures is not None]
    if not points or len(points) < len(found):
        return None
    return {
        "method": method,
        "cost": sum(p.own_cost for p in points) / len(points),
        "settings": [p.key for p in points],
        **summary([p.measures or {} for p in points]),
    }


def _oracle(method: str, points: Sequence[Point], seeds: Sequence[int]) -> dict[str, Any] | None:
    of_seed = [[p.measures or {} for p in points if p.seed == seed] for seed in seeds]
    if not all(of_seed):
        return None
    best = [
        {name: (max if name in LARGER_IS_NEARER else min)(m[name] for m in found) for name in SHOWN}
        for found in of_seed
    ]
    return {"method": method, "cost": None, "settings": [], **summary(best)}


def summary(found: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and worst of every measure over seeds.

    >>> summary([{"KL": 1.0, "cosine test": 0.5}, {"KL": 3.0, "cosine test": 0.7}])["KL"]
    {'mean': 2.0, 'worst': 3.0}
    """
    return {
        name: {
            "mean": sum(m[name] for m in found) / len(found),
            "worst": (min if name in LARGER_IS_NEARER else max)(m[name] for m in found),
        }
        for name in found[0]
    }
