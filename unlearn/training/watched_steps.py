"""A recorder for a training loop of which only the model, the optimizer and the data loader can be reached.

Callbacks of training libraries are made of it. What such a loop computes is set in many places, so the gradient of the
first step of each pass over the data is computed once more, as a replay would compute it, and must be the one that the
optimizer took.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearn.data import Rows
from unlearn.errors import RecordError, some
from unlearn.inputs import call_model, map_tensors, outputs_tensor
from unlearn.tasks import Task, get_task
from unlearn.training.drawn_batches import DrawnBatches
from unlearn.training.random_streams import streams_kept
from unlearn.training.record import TrainingRecord
from unlearn.training.recorder import Recorder

When = Literal["epoch"] | int | Collection[int] | None
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class WatchedSteps:
    """Notes each step of an optimizer, with the rows that its batch was made of.

    The loss must be the mean over the rows of a batch. The gradient of the first step of each pass is checked against
    that of the rows in ``data``, to the square root of the precision of the weights.

    Args:
        model: the module in training, whose outputs the task's loss is of.
        optimizer: see :class:`unlearn.Recorder`.
        drawn: batches of the training loader; watched already.
        data: the rows, in the order of the loader's dataset.
        folder: where the record goes.
        snapshots: as those of a Recorder, or ``epoch``: before the first step and after each pass.
        task: of the loss.

    Raises:
        RecordError: an optimizer that the record can not describe, or a model that draws at random.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        drawn: DrawnBatches,
        data: Rows,
        folder: str | Path,
        *,
        snapshots: When,
        task: str | Task,
    ) -> None:
        self._model, self._optimizer, self._drawn, self._data = model, optimizer, drawn, data
        self._task = get_task(task)
        _check_no_dropout(model)
        self._recorder = Recorder(
            model,
            optimizer,
            folder,
            snapshots=drawn.steps if snapshots == "epoch" else snapshots,
            task=self._task.name,
            data_fingerprint=data.fingerprint,
        )
        self.steps = 0
        self._expected: dict[str, Tensor] | None = None
        self._outputs: list[Tensor] = []
        self._sums = _sums(model)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            model.register_forward_hook(self._saw),
        ]

    def finish(self) -> TrainingRecord:
        """Stop watching, write what a recorder leaves and return the record.

        Raises:
            RecordError: no step was made, or the weights changed after the last one.
        """
        self.stop()
        if not all(map(torch.equal, self._sums, _sums(self._model))):
            raise RecordError(
                "the weights changed after the last step of the optimizer (averaged, or loaded from a checkpoint), so "
                "they are not those that the record leads to; leave that out, or do it after the training"
            )
        return self._recorder.finish()

    def stop(self) -> None:
        """Take the hooks from model, optimizer and loader."""
        for hook in self._hooks:
            hook.remove()
        self._drawn.stop()

    @contextlib.contextmanager
    def _until_refused(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _saw(self, module: nn.Module, _: Any, returned: Any) -> None:
        """Keep the outputs of a forward pass of the training."""
        outputs = outputs_tensor(returned)
        wanted = len(self._outputs) < 2  # of two passes in one step neither is its own
        if wanted and module.training and torch.is_grad_enabled() and outputs is not None:
            self._outputs.append(outputs.detach())

    def _before(self, *_: Any) -> None:
        """Before a step, whose closure may have the forward pass still to make."""
        with self._until_refused():
            positions, first = self._drawn.next()
            if first:
                seen = self._outputs.copy()
                self._expected = self._gradient(positions)
                self._outputs = seen

    def _after(self, *_: Any) -> None:
        """After a step and before the scheduler's."""
        with self._until_refused():
            positions = torch.tensor(self._drawn.take())
            if self._expected is not None:
                self._compare(self._expected)
                self._expected = None
            self._note(positions)

    def _note(self, positions: Tensor) -> None:
        margins: tuple[Tensor, ...] = ()
        if len(self._outputs) == 1 and self._task.name == "classification":
            margins = (self._outputs[0], self._data.labels[positions].to(self._outputs[0].device))
        self._outputs = []
        self._recorder.step([self._data.ids[int(i)] for i in positions], *margins)
        self.steps += 1
        self._sums = _sums(self._model)

    def _gradient(self, positions: list[int]) -> dict[str, Tensor]:
        """Return the gradient of the mean loss of these rows, everything else as it was."""
        model = self._model
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        device = next(iter(parameters.values())).device
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        inputs, labels = self._data.batch(torch.tensor(positions))
        labels = labels.to(device)
        with streams_kept(device), torch.enable_grad():
            outputs = call_model(model, map_tensors(lambda x: x.to(device), inputs))
            self._task.check(outputs, labels)
            loss = self._task.loss(outputs, labels).mean()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
        return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}

    def _compare(self, expected: dict[str, Tensor]) -> None:
        """Refuse a gradient other than the expected one."""
        decay = any(group["weight_decay"] for group in self._optimizer.param_groups)
        ours = theirs = apart = 0.0
        for name, parameter in self._model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None and decay:
                raise RecordError(
                    f"parameter {name!r} got no gradient, so weight decay left it out, and a replay would not; freeze "
                    "it with requires_grad_(False), or set weight_decay=0"
                )
            taken = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()
            right = expected.get(name, torch.zeros_like(taken))
            ours += float(right.double().square().sum())
            theirs += float(taken.double().square().sum())
            apart += float((taken.double() - right.double()).square().sum())
        precision = max(torch.finfo(p.dtype).eps for p in self._model.parameters())
        if not apart**0.5 <= precision**0.5 * max(ours, theirs) ** 0.5:
            raise RecordError(
                f"the gradient of step {self.steps} is {_ratio(theirs, ours)} times as long as that of the mean "
                f"{self._task.name} loss of its rows in data, and {_ratio(apart, ours)} of that apart from it, so a "
                "replay would be another training: pass data in the dataset's order with the same labels (shifted by "
                "one for a causal model) and no augmentation, and let the loss be the mean over the rows"
            )


def _ratio(above: float, below: float) -> str:
    return f"{(above / below) ** 0.5:.3g}" if below else "infinitely many"


def _sums(model: nn.Module) -> list[Tensor]:
    """Return the sum of each parameter, to see whether one has changed; not read, so that no device is waited for."""
    return [p.detach().sum(dtype=torch.float64) for p in model.parameters()]


def _check_no_dropout(model: nn.Module) -> None:
    """Refuse a model that drops at random: what it dropped is not in the record."""
    active = [name for name, module in model.named_modules() if isinstance(module, _DROPOUTS) and module.p > 0]
    if active:
        options = {key: value for key, value in vars(getattr(model, "config", None) or object).items() if "drop" in key}
        named = [f"{key}=0" for key, value in options.items() if isinstance(value, float) and value > 0]
        raise RecordError(
            f"the model drops at random in {some(map(repr, active))}, and a replay would draw otherwise: build it with "
            + (f"{', '.join(named)} in its configuration" if named else "probabilities of 0")
        )
