"""Linear datamodeling score: do sums of attributions tell how queries fare after retraining on a part of the rows?

Axes: m subsets, r repeats, n rows, q queries.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy.stats import rankdata
from torch import Tensor, nn

from unlearn.atomic import make_folder, write_atomically
from unlearn.checkpoint.digests import canonical_json, sha256_of_tensors, sha256_of_text
from unlearn.data import as_rows, draws
from unlearn.errors import InputError, RecordError
from unlearn.predict import predict
from unlearn.progress import track
from unlearn.tasks import Task, get_task
from unlearn.training import TrainSettings, train

Build = Callable[[int], nn.Module]
Floats = npt.NDArray[np.float64]

FORMAT = 1
FEWEST = 3


@dataclass(frozen=True)
class Datamodels:
    """Losses of queries under models that were each trained on a random subset of the rows.

    Attributes:
        ids: of the training rows, (n,).
        query_ids: of the queries, (q,).
        masks: which rows a model was trained on, bool, (m, n).
        losses: of the queries, float64, (m, r, q); the repeats of a subset differ in their training seed.
        cost_epochs: of all trainings, in training epochs on all rows.
        trained: how many trainings were done now, not read from a folder.

    Raises:
        InputError: fewer than 3 subsets, shapes that do not fit each other, or a loss that is not finite.
    """

    ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    masks: Tensor
    losses: Tensor
    cost_epochs: float = 0.0
    trained: int = 0

    def __post_init__(self) -> None:
        m, n, q = len(self.masks), len(self.ids), len(self.query_ids)
        repeats = self.losses.shape[1] if self.losses.ndim == 3 else 0
        if m < FEWEST or repeats < 1 or self.masks.shape != (m, n) or self.losses.shape != (m, repeats, q):
            raise InputError(
                f"masks have shape {tuple(self.masks.shape)} and losses {tuple(self.losses.shape)} for {n} rows and "
                f"{q} queries; give (subsets, rows) and (subsets, repeats, queries), with at least {FEWEST} subsets"
            )
        if not torch.isfinite(self.losses).all():
            subset, _, query = (~torch.isfinite(self.losses)).nonzero()[0].tolist()
            raise InputError(
                f"the loss of query {self.query_ids[query]!r} after retraining on subset {subset} is not finite; lower "
                "the learning rate, or leave the query out"
            )

    @property
    def outputs(self) -> Tensor:
        """Losses averaged over the repeats, (m, q)."""
        return self.losses.mean(1)


def datamodel_retrains(
    build: Build,
    data: Any,
    queries: Any,
    settings: TrainSettings,
    *,
    subsets: int = 100,
    share: float = 0.5,
    repeats: int = 1,
    seed: int = 0,
    task: str | Task = "classification",
    folder: str | Path | None = None,
) -> Datamodels:
    """Train on random subsets of the rows and note the losses of the queries.

    Every subset has ``share`` of the rows, drawn by seed and row id. Each training has a seed of its own, for the
    initial weights and for the row order, so that what is measured is an average over trainings and no property of one
    initialisation. A query's log-odds of the right class, which arXiv 2303.14186 measures, are a decreasing function of
    its loss: with one repeat the score is the same, up to the sign.

    Args:
        build: ``seed -> model`` with initial weights. It is called under that global seed, which is then restored.
        data: all training rows, with their given labels. See :func:`unlearn.data.as_rows`.
        queries: rows whose loss is measured.
        settings: of every training; epochs are epochs on the subset.
        subsets: how many; the first ones stay the same when there are more.
        share: of the rows, in (0, 1), in each subset.
        repeats: trainings on each subset, to be averaged.
        seed: of subsets and trainings.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        folder: where the losses (not the models) are kept after each subset, and looked for, under a digest of all
            that they depend on: rows, queries, settings, first initial weights. A run that was stopped goes on there.

    Raises:
        InputError: an option outside its range, or a training that fails.
        RecordError: the file in the folder is damaged.

    >>> rows = torch.eye(4).repeat(5, 1), torch.arange(20) % 4 // 2
    >>> found = datamodel_retrains(lambda seed: nn.Linear(4, 2), rows, rows, TrainSettings(epochs=1), subsets=3)
    >>> tuple(found.masks.shape), found.masks.sum(1).tolist(), tuple(found.losses.shape), found.cost_epochs
    ((3, 20), [10, 10, 10], (3, 1, 20), 1.5)
    """
    rows, query_rows, the_task = as_rows(data), as_rows(queries), get_task(task)
    count = round(share * len(rows)) if 0 < share < 1 else 0
    if not 0 < count < len(rows):
        raise InputError(
            f"share is {share} of {len(rows)} rows; give one above 0 and below 1 that leaves some rows out"
        )
    for name, value, least in (("subsets", subsets, FEWEST), ("repeats", repeats, 1)):
        if value < least:
            raise InputError(f"{name} is {value}; give at least {least}")
    chosen = [torch.from_numpy(draws.permutation(seed, rows.ids, f"datamodel-{k}")[:count]) for k in range(subsets)]
    about = {
        "format": FORMAT,
        "rows": rows.fingerprint,
        "queries": query_rows.fingerprint,
        "query_order": sha256_of_text(canonical_json(tuple(query_rows.ids))),
        "settings": dataclasses.asdict(settings),
        "task": the_task.name,
        "share": share,
        "repeats": repeats,
        "seed": seed,
        **_architecture(_built(build, draws.derived_seed(seed, "datamodel", 0, 0))),
    }
    store = _Losses(None if folder is None else make_folder(folder), about)
    done = store.read()
    before = len(done)
    for k in track(range(before, subsets), "retrains on subsets"):
        subset = rows.only(sorted(rows.ids[i] for i in chosen[k].tolist()))
        found = []
        for repeat in range(repeats):
            own_seed = draws.derived_seed(seed, "datamodel", k, repeat)
            model, _ = train(_built(build, own_seed), subset, settings, seed=own_seed, task=the_task)
            outputs = predict(model, query_rows)
            the_task.check(outputs, query_rows.labels)
            found.append(the_task.loss(outputs.double(), query_rows.labels))
        done.append(torch.stack(found))
        store.write(done)
    masks = torch.zeros(subsets, len(rows), dtype=torch.bool)
    for k, positions in enumerate(chosen):
        masks[k, positions] = True
    epochs = settings.epochs * repeats * subsets * count / len(rows)
    trained = repeats * max(0, subsets - before)
    return Datamodels(tuple(rows.ids), tuple(query_rows.ids), masks, torch.stack(done[:subsets]), epochs, trained)


@dataclass(frozen=True)
class DatamodelingScore:
    """How well attributions predict retraining; 1 is best, 0 says nothing, below 0 the sign is wrong.

    Attributes:
        mean: over the queries.
        low: lower bound of the bootstrap interval.
        high: upper bound.
        level: of the interval.
        per_query: rank correlation of each query, (q,).
    """

    mean: float
    low: float
    high: float
    level: float
    per_query: Floats


def linear_datamodeling_score(
    attributions: Tensor, datamodels: Datamodels, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> DatamodelingScore:
    """Return the linear datamodeling score (LDS) of arXiv 2303.14186 with a bootstrap interval.

    For each query it is Spearman's correlation, over the subsets S, of the loss measured after training on S with the
    sum of the attributions of the rows in S; the score is the mean over the queries. **Positive attributions are
    harmful**, as those of :func:`unlearn.influence`: their sum predicts the loss, whatever its scale.

    The interval is a percentile bootstrap that resamples subsets and queries together: all queries are measured on the
    same subsets, so that queries alone would give an interval that is too narrow.

    Args:
        attributions: of each row to each query, (q, n), in the order of the datamodels' ids.
        datamodels: measured losses.
        level: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The score. A query whose predictions are all the same counts 0.

    Raises:
        InputError: attributions of another shape or not finite, a query whose loss is the same in all retrains, or an
            option outside its range.

    >>> draw = torch.Generator().manual_seed(0)
    >>> masks, effects = torch.rand(9, 6, generator=draw) < 0.5, torch.randn(2, 6, generator=draw).double()
    >>> linear = Datamodels(tuple("abcdef"), ("x", "y"), masks, (masks.double() @ effects.T)[:, None] + 3)
    >>> linear_datamodeling_score(effects, linear).mean, linear_datamodeling_score(-effects, linear).mean
    (1.0, -1.0)
    """
    expected = (len(datamodels.query_ids), len(datamodels.ids))
    if tuple(attributions.shape) != expected:
        raise InputError(f"attributions have shape {tuple(attributions.shape)}; give (queries, rows) = {expected}")
    if not torch.isfinite(attributions).all():
        raise InputError("attributions are NaN or infinite; check how they were made, or give more damping")
    if not 0 < level < 1:
        raise InputError(f"level is {level}; give a number between 0 and 1, such as 0.95")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; give at least 1")
    measured = datamodels.outputs.double().cpu().numpy()
    constant = np.flatnonzero(np.ptp(measured, axis=0) == 0)
    if len(constant):
        raise InputError(
            f"the loss of query {datamodels.query_ids[constant[0]]!r} is the same in all retrains, so nothing can be "
            "predicted; leave the query out"
        )
    predicted = (datamodels.masks.double().cpu() @ attributions.detach().double().cpu().T).numpy()
    per_query = rank_correlations(predicted, measured)
    random = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for k in range(resamples):
        subsets = random.integers(len(measured), size=len(measured))
        queries = random.integers(len(per_query), size=len(per_query))
        means[k] = rank_correlations(predicted[subsets], measured[subsets])[queries].mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return DatamodelingScore(float(per_query.mean()), float(low), float(high), level, per_query)


def rank_correlations(a: Floats, b: Floats) -> Floats:
    """Return Spearman's correlation of each column of ``a`` with that of ``b``; 0 where a column has one value only.

    >>> a, b = np.array([[1.0, 5.0], [2.0, 5.0], [9.0, 5.0]]), np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    >>> rank_correlations(a, b)
    array([-1.,  0.])
    """
    x, y = (rankdata(values, axis=0) for values in (a, b))
    x, y = x - x.mean(0), y - y.mean(0)
    norms = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    found: Floats = np.divide((x * y).sum(0), norms, out=np.zeros_like(norms), where=norms > 0)
    return found


def _built(build: Build, seed: int) -> nn.Module:
    """Return the initial model of a seed; the global seed is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(seed)


def _architecture(model: nn.Module) -> dict[str, str]:
    """Return what tells one initial model from another."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return {"architecture": str(model), "first_weights": sha256_of_tensors(weights)}


class _Losses:
    """The losses of the subsets that are finished, in one file named after all that they depend on."""

    def __init__(self, folder: Path | None, about: dict[str, Any]) -> None:
        self.about = canonical_json(about)
        self.path = None if folder is None else folder / f"datamodels-{sha256_of_text(self.about)[:16]}.safetensors"

    def read(self) -> list[Tensor]:
        """Return the losses (repeats, queries) of each finished subset."""
        if self.path is None or not self.path.exists():
            return []
        try:
            with safe_open(self.path, "pt") as file:
                said, losses = file.metadata()["unlearn"], file.get_tensor("losses")
            if json.loads(said) != json.loads(self.about):
                raise ValueError("it belongs to other retrains")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"{self.path} is damaged ({error}); remove it, and the subsets are trained again"
            ) from error
        return list(losses)

    def write(self, losses: list[Tensor]) -> None:
        """Keep the losses of the subsets finished so far."""
        if self.path is not None:
            write_atomically(self.path, save({"losses": torch.stack(losses)}, {"unlearn": self.about}))
