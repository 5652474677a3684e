"""A recorder for any training loop: row order, learning rates, snapshots, trajectories."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from unlearn.atomic import make_folder
from unlearn.errors import InputError, RecordError
from unlearn.training.order import BatchOrder
from unlearn.training.record import ORDER_FILE, TrainingRecord, write_order
from unlearn.training.snapshots import Snapshot, snapshot_path, write_snapshot
from unlearn.training.trajectory import TrajectoryMeter

TRAJECTORY_FILE = "trajectory.safetensors"


class Recorder:
    """Leaves a training record beside a user's own loop.

    Call :meth:`step` after every ``optimizer.step()`` and before the scheduler's, then :meth:`finish`.

    Args:
        model: the model in training.
        optimizer: ``torch.optim.SGD`` (no dampening, no Nesterov) or ``torch.optim.Adam``, one parameter group or
            several of equal settings.
        folder: where snapshots, row order and trajectory go.
        snapshots: numbers of steps after which to take a snapshot (0: before the first), or one number: before the
            first and then every so many steps. The last step is always taken.
        task: name of the task.
        seed: noted in the record.
        data_fingerprint: noted in the record.

    Raises:
        RecordError: an optimizer that the record can not describe, or of other parameters than the model's.
        InputError: a snapshot every 0 or fewer steps.

    >>> import tempfile
    >>> model = nn.Linear(2, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> recorder = Recorder(model, optimizer, tempfile.mkdtemp())
    >>> recorder.step(["a", "b"])
    >>> record = recorder.finish()
    >>> record.steps, sorted(record.snapshots), record.order.batch(0)
    (1, [1], ['a', 'b'])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        folder: str | Path,
        *,
        snapshots: int | Collection[int] | None = None,
        task: str = "classification",
        seed: int | None = None,
        data_fingerprint: str | None = None,
    ) -> None:
        self._kind = describe(optimizer)
        _check_parameters(model, optimizer)
        if isinstance(snapshots, int) and snapshots < 1:
            raise InputError(f"snapshots is {snapshots}; give 1 or more steps between two, or a list of steps")
        make_folder(Path(folder) / "snapshots")
        self._model, self._optimizer, self._folder = model, optimizer, Path(folder)
        self._when = snapshots
        self._about = {"task": task, "seed": seed, "data_fingerprint": data_fingerprint}
        self._rates: list[float] = []
        self._batches: list[tuple[str, ...]] = []
        self._digests: dict[int, str] = {}
        self._meter = TrajectoryMeter()
        self._seen_outputs = False
        self._finished = False
        if snapshots is not None and self._due(0):
            self._take(0)

    def step(self, ids: Sequence[str], outputs: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Note one optimizer step.

        Args:
            ids: ids of the rows of this batch.
            outputs: logits of the forward pass just made, (b, classes), for the margin trajectory.
            labels: given labels of the batch, (b,).

        Raises:
            InputError: outputs without labels, or of another length than ids.
            RecordError: the recorder is finished, or the optimizer's settings but the rate have changed.
        """
        if self._finished:
            raise RecordError("this recorder is finished; make a new one for a new training")
        if (outputs is None) != (labels is None):
            raise InputError("recorder.step got outputs without labels or labels without outputs; pass both or none")
        if describe(self._optimizer) != self._kind:
            raise RecordError(
                f"the optimizer's settings changed from {self._kind} to {describe(self._optimizer)}; the record covers "
                "a changing rate only (OneCycleLR: pass cycle_momentum=False)"
            )
        self._rates.append(float(self._optimizer.param_groups[0]["lr"]))
        self._batches.append(tuple(str(row) for row in ids))
        if outputs is not None and labels is not None:
            if not len(outputs) == len(labels) == len(ids):
                raise InputError(f"recorder.step got {len(ids)} ids, {len(outputs)} outputs, {len(labels)} labels")
            if labels.is_floating_point():
                raise InputError("recorder.step got labels that are no classes; margins need them, so pass ids alone")
            self._meter.add(self._batches[-1], outputs, labels)
            self._seen_outputs = True
        if self._due(len(self._rates)):
            self._take(len(self._rates))

    def finish(self) -> TrainingRecord:
        """Write the last snapshot, row order and trajectory, and return the record.

        Raises:
            RecordError: no step was noted.
        """
        steps = len(self._rates)
        if steps == 0:
            raise RecordError("the recorder saw no step: call recorder.step(ids) after every optimizer.step()")
        if steps not in self._digests:
            self._take(steps)
        order = BatchOrder.from_batches(self._batches)
        write_order(self._folder / "snapshots" / ORDER_FILE, order)
        if self._seen_outputs:
            self._meter.trajectory().save(self._folder / TRAJECTORY_FILE)
        self._finished = True
        return TrainingRecord(
            **self._kind,  # type: ignore[arg-type]
            **self._about,  # type: ignore[arg-type]
            lr=tuple(self._rates),
            steps=steps,
            order=order,
            snapshots=MappingProxyType(dict(self._digests)),
            folder=self._folder,
        )

    def _due(self, step: int) -> bool:
        if isinstance(self._when, int):
            return step % self._when == 0
        return self._when is not None and step in self._when

    def _take(self, step: int) -> None:
        snapshot = Snapshot.take(self._model, self._optimizer)
        self._digests[step] = write_snapshot(snapshot_path(self._folder, step), snapshot)


def _check_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer of other parameters than the model's trainable ones: a replay would move those."""
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if trainable != moved:
        raise RecordError(
            f"the optimizer holds {len(moved & trainable)} of the model's {len(trainable)} trainable parameters and "
            f"{len(moved - trainable)} others; give it all of them, and freeze the rest with requires_grad_(False)"
        )


def describe(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """Return the record's fields for this optimizer."""
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    group = settings[0]
    unlike = sorted({key for other in settings for key in other if other[key] != group.get(key)})
    if unlike:
        raise RecordError(
            f"the optimizer has {len(settings)} parameter groups that differ in {', '.join(unlike)}; the record covers "
            "one group, or several of equal settings"
        )
    unknown = [
        key for key in ("nesterov", "dampening", "amsgrad", "maximize", "decoupled_weight_decay") if group.get(key)
    ]
    if unknown:
        raise RecordError(
            f"the optimizer uses {', '.join(unknown)}; the record covers plain SGD with momentum, and Adam"
        )
    if type(optimizer) is torch.optim.SGD:
        return {"optimizer": "sgd", "momentum": group["momentum"], "weight_decay": group["weight_decay"]}
    if type(optimizer) is torch.optim.Adam:
        fields = {key: group[key] for key in ("weight_decay", "betas", "eps")}
        return {"optimizer": "adam", **fields}
    raise RecordError(
        f"the optimizer is {type(optimizer).__name__}; the record covers torch.optim.SGD and torch.optim.Adam"
    )
