"""U, the unrolled edit: how the recorded training would have moved without the changed rows, linearised around it.

The recorded steps theta_t are those of SGD with momentum mu (or Adam) on the full data. Training on the changed data,
in the same order, would have walked theta_t + D_t, and to first order in D

    SGD:    V <- mu V + (c G + w) D - p_t,                        D <- D - lr_t V
    Adam:   V <- beta1 V + (1 - beta1) ((c G + w) D - p_t),       D <- D - lr_t P V / (1 - beta1^t)

with p_t of :mod:`unlearn.repair.impulses`, G the Gauss-Newton matrix of the mean loss and P = 1 / (sqrt(v) + eps). It
is the idea of SOURCE (arXiv 2405.12186: segments with a stationary curvature each, EK-FAC filters), turned from a score
into an edit, with three departures. The recorded steps are run instead of gradient flow, so a row pushes when it was
seen. The optimizer's momentum is carried along, and edited too. Eigenvalues are taken c times: EK-FAC leaves out that
the layers of a row's gradient act together. With L layers the true v^T G v is between 0 and L times that of the blocks,
and nearer to L along what many rows push; c is sqrt(L) for a few rows and L from a share ``COHERENT`` of all on.

In the eigenbasis of a segment all of this is elementwise: a request costs one gradient of its rows for each segment,
and a few elementwise products for each step. P is taken by its diagonal in the eigenbasis. Nothing bounds D: where it
is large, the linearisation overshoots, and a replay from there on has to mend it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.curvature import Curvature, Vector
from unlearn.curvature.layers import find_layers
from unlearn.data import Rows
from unlearn.errors import InputError, RecordError
from unlearn.progress import track
from unlearn.repair.changes import Changes
from unlearn.repair.impulses import Blocks, bins_of, impulses
from unlearn.repair.trajectory import Segment, Trajectory
from unlearn.training import Snapshot, TrainingRecord

BINS = 16
COHERENT = 0.01
"""The rows from which on c is the number of layers, as a share of all rows."""
GRADIENT_COST = 3


@dataclass(frozen=True)
class Unrolled:
    """Where training on the changed data would have been, relative to the recorded training.

    Attributes:
        change: D at the end, of the covered parameters.
        momentum: V at the end, of the optimizer's momentum.
        curvature: of the last segment.
        scale: c.
        cost: row passes: forward 1, backward 2.
        storage: bytes of the factors that were read.
    """

    change: Vector
    momentum: Vector
    curvature: Curvature
    scale: float
    cost: int
    storage: int

    def on(self, snapshot: Snapshot) -> Snapshot:
        """Return a snapshot with its weights moved by D and its momentum by V.

        The momentum is ``momentum_buffer`` of SGD, ``exp_avg`` of Adam.
        """
        weights, state = dict(snapshot.weights), dict(snapshot.optimizer)
        for name, part in self.change.items():
            weights[name] = (weights[name].to(part) + part).to(weights[name])  # rounded once where these are half
            for key in (f"momentum_buffer/{name}", f"exp_avg/{name}"):
                if key in state:
                    state[key] = (state[key].to(part) + self.momentum[name]).to(state[key])
        return Snapshot(weights, state)


def unroll(
    trajectory: Trajectory,
    data: Rows,
    changes: Changes,
    segments: Sequence[Segment],
    *,
    coherence: float | None = None,
    bins: int = BINS,
    take: Callable[[int, Snapshot], None] | None = None,
) -> Unrolled:
    """Return the change of weights and momentum at the end of the last segment.

    Args:
        trajectory: the recorded training.
        data: rows before the change.
        changes: the change.
        segments: from :func:`unlearn.repair.trajectory.segments_to`, one after the other.
        coherence: c; by the number of layers and of rows if None, see above.
        bins: in a segment of more steps, rows push in the middle of so many runs of steps. A bin takes as much memory
            as the weights.
        take: called with the step and the moved snapshot at the end of every segment but the last.

    Raises:
        RecordError: no segment, no row order, or an optimizer that is not unrolled.
        InputError: the change is not finite: the linearised training diverges.

    >>> import tempfile
    >>> from torch import nn
    >>> from unlearn.tasks import get_task
    >>> from unlearn.training import TrainSettings, train
    >>> from unlearn.repair.trajectory import segments_to
    >>> rows = Rows.from_tensors(torch.eye(6), torch.tensor([0, 1, 0, 1, 0, 1]))
    >>> settings = TrainSettings(epochs=4, batch_size=2, lr=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model, record = train(nn.Linear(6, 2), rows, settings, folder=folder, snapshot_epochs=range(5))
    ...     known = Trajectory(model, record, rows, get_task("classification"))
    ...     found = unroll(known, rows, Changes(removed=("0",)), segments_to(record.snapshots, record.steps))
    >>> bool(found.change["weight"][0, 0] < 0)      # row 0 had pushed its class up
    True
    """
    record = trajectory.record
    if not segments or record.order is None:
        raise RecordError("the unrolled edit needs a recorded row order and at least two snapshots; record them")
    if record.optimizer not in ("sgd", "adam"):
        raise RecordError(f"the optimizer {record.optimizer!r} is not unrolled; edit the final weights with budget=0")
    scale = _coherence(trajectory, data, changes) if coherence is None else coherence
    passes, storage = len(changes.ids) + len(changes.relabelled), 0
    state, before = _State({}, {}), None
    for k, segment in enumerate(track(segments, "unrolling"), 1):
        model = trajectory.halfway(segment)
        curvature = trajectory.curvature(segment, model)
        state = state.turned(before, curvature)
        slots = bins_of(segment, bins)
        pushes = impulses(model, curvature, data, changes, trajectory.task, record.order, segment, slots)
        rates = {name: scale * block.eigenvalues + record.weight_decay for name, block in curvature.blocks.items()}
        state.walk(record, segment, slots, pushes, rates, _metric(record, segment, curvature))
        before, storage = curvature, storage + _bytes(curvature)
        if k < len(segments) and take is None:
            continue
        change, momentum = (_vector(curvature, part) for part in (state.change, state.momentum))
        if not all(torch.isfinite(part).all() for part in (*change.values(), *momentum.values())):
            raise InputError(
                f"the unrolled edit of {len(changes.ids)} rows is not finite: the linearised training diverges; "
                "record snapshots more often, or pass method='newton'"
            )
        found = Unrolled(change, momentum, curvature, scale, GRADIENT_COST * passes * k, storage)
        if take is not None and k < len(segments):
            take(segment.stop, found.on(record.snapshot(segment.stop)))
    return found


def _coherence(trajectory: Trajectory, data: Rows, changes: Changes) -> float:
    layers = len(find_layers(trajectory.model, data).layers)
    return float(layers) if len(changes.ids) > COHERENT * len(data) else math.sqrt(layers)


@dataclass
class _State:
    """D and V in the eigenbases of a curvature, blocks (g, o, i) by layer name; empty at first."""

    change: Blocks
    momentum: Blocks

    def turned(self, before: Curvature | None, now: Curvature) -> _State:
        """Return the state in the bases of the next segment."""
        if before is None:
            return _State(*({n: torch.zeros_like(b.eigenvalues) for n, b in now.blocks.items()} for _ in range(2)))
        if before.blocks.keys() != now.blocks.keys():
            raise RecordError("the snapshots have different trained layers; they are of another model")
        return _State(
            *(
                {n: b.basis.rotate(before.blocks[n].basis.rotate_back(part[n])) for n, b in now.blocks.items()}
                for part in (self.change, self.momentum)
            )
        )

    def walk(
        self,
        record: TrainingRecord,
        segment: Segment,
        slots: Tensor,
        pushes: list[Blocks],
        rates: Blocks,
        metric: Blocks | None,
    ) -> None:
        """Run the recorded steps of a segment, in place."""
        adam = record.optimizer == "adam"
        keep, gain = (record.betas[0], 1 - record.betas[0]) if adam else (record.momentum, 1.0)
        widths = torch.bincount(slots).tolist()
        for name, rate in rates.items():
            change, momentum = self.change[name], self.momentum[name]
            pull = gain * rate
            push = [part[name] * (gain / width) for part, width in zip(pushes, widths, strict=True)]
            for step, slot in zip(range(segment.start, segment.stop), slots.tolist(), strict=True):
                momentum.mul_(keep).addcmul_(pull, change).sub_(push[slot])
                size = float(record.rates()[step])
                if metric is None:
                    change.sub_(momentum, alpha=size)
                else:
                    change.addcmul_(metric[name], momentum, value=-size / (1 - keep ** (step + 1)))


def _metric(record: TrainingRecord, segment: Segment, curvature: Curvature) -> Blocks | None:
    """Return the diagonal of Adam's 1 / (sqrt(v) + eps) in the eigenbases, its mean over the segment's ends; else None.

    The diagonal of U^T diag(P) U is the square of the bases times P: the closest diagonal, as EK-FAC's eigenvalues are.
    """
    if record.optimizer != "adam":
        return None
    total: Blocks = {}
    ends = [step for step in (segment.start, segment.stop) if step > 0]
    for step in ends:
        snapshot, correction = record.snapshot(step), 1 - record.betas[1] ** step
        moments = {name: snapshot.optimizer[f"exp_avg_sq/{name}"] for name in curvature.covered}
        inverse = {name: 1 / ((v / correction).sqrt() + record.eps) for name, v in moments.items()}
        for name, block in curvature.blocks.items():
            part = block.basis.squared().rotate(block.layer.block(inverse).to(block.eigenvalues)) / len(ends)
            total[name] = total[name] + part if name in total else part
    return total


def _vector(curvature: Curvature, blocks: Blocks) -> Vector:
    """Return rotated blocks as parameters."""
    found: Vector = {}
    for name, block in curvature.blocks.items():
        found |= block.layer.vector(block.basis.rotate_back(blocks[name]))
    return found


def _bytes(curvature: Curvature) -> int:
    parts = [
        tensor
        for block in curvature.blocks.values()
        for tensor in (block.eigenvalues, block.basis.inputs, block.basis.outputs)
    ]
    return sum(part.nbytes for part in parts if part is not None)
