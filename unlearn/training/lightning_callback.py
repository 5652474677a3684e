"""A training record left by the Trainer of Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from unlearn.data import as_rows
from unlearn.errors import RecordError
from unlearn.extras import extra_module
from unlearn.tasks import Task
from unlearn.training.drawn_batches import DrawnBatches
from unlearn.training.watched_steps import WatchedSteps, When
from unlearn.training.watching_callback import WatchingCallback


class LightningRecorder(WatchingCallback):
    """A ``lightning.pytorch.Callback`` that leaves a training record beside ``lightning.Trainer``.

    The rows of each step are noted where the loader's sampler draws them. Settings that a record can not describe are
    refused before the first step. What was set elsewhere is found by the gradient of the first step of each pass, which
    is computed once more from ``data`` (:mod:`unlearn.training.watched_steps`).

    Args:
        folder: where the record goes.
        data: rows of the loader's dataset in its order, as the edit will be given them: anything that
            :func:`unlearn.as_rows` takes.
        loader: the ``DataLoader`` that ``Trainer.fit`` will be given. Lightning draws from it before callbacks are
            told of it.
        model: the module whose outputs the loss is of; the LightningModule itself, if None.
        snapshots: ``epoch``: before the first step and after each pass; or as those of :class:`unlearn.Recorder`.
        task: of the loss.

    Raises:
        MissingExtraError: lightning is not installed.
        RecordError: a loader whose rows have no positions, or of another number of rows.

    >>> import torch
    >>> pair = torch.zeros(2, 3), torch.tensor([0, 1])
    >>> LightningRecorder("run", pair, DataLoader(torch.utils.data.TensorDataset(*pair))).record
    Traceback (most recent call last):
    unlearn.errors.RecordError: there is no record yet; it is made at the end of Trainer.fit()
    """

    LIBRARY = ("lightning.pytorch", "Callback", "lightning")
    TRAINING = "Trainer.fit()"

    def __init__(
        self,
        folder: str | Path,
        data: Any,
        loader: DataLoader[Any],
        *,
        model: nn.Module | None = None,
        snapshots: When = "epoch",
        task: str | Task = "classification",
    ) -> None:
        self._folder, self._data, self._model, self._snapshots, self._task = (
            folder, as_rows(data), model, snapshots, task,
        )  # fmt: skip
        self._drawn = DrawnBatches(loader, len(self._data))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch the loader, from which Lightning draws before the training starts."""
        self._record = self._watched = None
        _check_trainer(trainer)
        self._drawn.start()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch the steps."""
        if trainer.train_dataloader is not self._drawn.loader:
            self._drawn.stop()
            raise RecordError(
                "Lightning trains on another DataLoader than LightningRecorder was given (or on a copy of it); pass it "
                "the very one, without overfit_batches and without a distributed sampler"
            )
        self._watched = WatchedSteps(
            pl_module if self._model is None else self._model,
            trainer.optimizers[0],
            self._drawn,
            self._data,
            self._folder,
            snapshots=min(self._drawn.steps, trainer.num_training_batches)
            if self._snapshots == "epoch"
            else self._snapshots,
            task=self._task,
        )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note how many steps were made."""
        self._count()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check that it was one."""
        if self._made() != 1:
            raise RecordError(
                f"batch {batch_idx} was followed by {self._made()} steps of the optimizer; the "
                "record covers one a batch, without accumulate_grad_batches and its scheduler"
            )

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give loader, model and optimizer back as they were."""
        self._drawn.stop()
        if self._watched is not None:
            watched, self._watched = self._watched, None
            watched.stop()


def _check_trainer(trainer: Any) -> None:
    """Refuse settings that a record can not describe, all in one line."""
    callbacks = extra_module("lightning.pytorch.callbacks", "lightning", "LightningRecorder is a callback of lightning")
    wrong = []
    if trainer.world_size > 1:
        wrong.append(f"{trainer.world_size} devices (set devices=1)")
    if trainer.accumulate_grad_batches != 1:
        wrong.append(f"accumulate_grad_batches={trainer.accumulate_grad_batches} (set 1)")
    if trainer.gradient_clip_val:
        wrong.append(f"gradient_clip_val={trainer.gradient_clip_val} (set None)")
    if trainer.precision not in ("32-true", "64-true"):
        wrong.append(f"precision={trainer.precision!r} (set '32-true')")
    if trainer.reload_dataloaders_every_n_epochs:
        wrong.append(f"reload_dataloaders_every_n_epochs={trainer.reload_dataloaders_every_n_epochs} (set 0)")
    if trainer.ckpt_path is not None:
        wrong.append(f"ckpt_path={trainer.ckpt_path!r} (train from the start)")
    if len(trainer.optimizers) != 1:
        wrong.append(f"{len(trainer.optimizers)} optimizers (return one from configure_optimizers)")
    averaging = [
        getattr(callbacks, name)
        for name in ("StochasticWeightAveraging", "WeightAveraging")
        if hasattr(callbacks, name)
    ]
    wrong += [
        f"{type(callback).__name__} (leave it out)"
        for callback in trainer.callbacks
        if isinstance(callback, tuple(averaging))
    ]
    if wrong:
        raise RecordError(f"a training record can not describe {', '.join(wrong)}; change the lightning.Trainer")
