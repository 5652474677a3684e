"""A training record left by the Trainer of Hugging Face transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearn.data import as_rows
from unlearn.errors import RecordError
from unlearn.tasks import Task
from unlearn.training.drawn_batches import DrawnBatches
from unlearn.training.watched_steps import WatchedSteps, When
from unlearn.training.watching_callback import WatchingCallback

_OPTIMIZERS = (
    "TrainingArguments(optim='sgd') without weight decay, or Trainer(optimizers=(torch.optim.Adam(model.parameters(), "
    "lr=...), None))"
)


class TrainerRecorder(WatchingCallback):
    """A ``transformers.TrainerCallback`` that leaves a training record beside ``transformers.Trainer``.

    The rows of each step are noted where the Trainer's sampler draws them. Settings that a record can not describe are
    refused before the first step. What was set elsewhere is found by the gradient of the first step of each pass, which
    is computed once more from ``data`` (:mod:`unlearn.training.watched_steps`).

    Args:
        folder: where the record goes.
        data: rows of the training dataset in its order, as the edit will be given them: anything that
            :func:`unlearn.as_rows` takes.
        snapshots: ``epoch``: before the first step and after each pass; or as those of :class:`unlearn.Recorder`.
        task: of the loss.

    Raises:
        MissingExtraError: transformers is not installed.

    >>> import torch
    >>> TrainerRecorder("run", (torch.zeros(2, 3), torch.tensor([0, 1]))).record
    Traceback (most recent call last):
    unlearn.errors.RecordError: there is no record yet; it is made at the end of Trainer.train()
    """

    LIBRARY = ("transformers", "TrainerCallback", "trainer")
    TRAINING = "Trainer.train()"

    def __init__(
        self, folder: str | Path, data: Any, *, snapshots: When = "epoch", task: str | Task = "classification"
    ) -> None:
        self._folder, self._data, self._snapshots, self._task = folder, as_rows(data), snapshots, task

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the settings and begin to watch."""
        if self._watched is not None:
            self._watched.stop()  # of a training that was broken off
        self._record = self._watched = None
        _check_arguments(args)
        if state.global_step:
            raise RecordError(
                f"the training goes on after step {state.global_step} of another run, whose rows are not known; train "
                "without resume_from_checkpoint"
            )
        optimizer = kwargs["optimizer"]
        precision = getattr(getattr(optimizer, "accelerator_state", None), "mixed_precision", "no")
        if precision != "no":  # TrainingArguments may say nothing of it
            raise RecordError(
                f"accelerate runs the model in {precision!r}, and a training record tells of full precision; set the "
                "environment variable ACCELERATE_MIXED_PRECISION=no"
            )
        while not type(optimizer).__module__.startswith("torch.") and hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer  # accelerate's wrapper
        drawn = DrawnBatches(kwargs["train_dataloader"], len(self._data))
        try:
            self._watched = WatchedSteps(
                kwargs["model"],
                optimizer,
                drawn,
                self._data,
                self._folder,
                snapshots=self._snapshots,
                task=self._task,
            )
        except RecordError as error:
            if "optimizer" not in str(error):
                raise
            raise RecordError(f"{error}: {_OPTIMIZERS}") from error
        drawn.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note how many steps were made."""
        self._count()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that it was one."""
        if self._watched is not None and self._made() != 1:
            self._watched.stop()
            raise RecordError(
                f"step {state.global_step} of the Trainer was {self._made()} steps of its "
                "optimizer; the record covers one optimizer step a batch"
            )


def _check_arguments(args: Any) -> None:
    """Refuse settings that a record can not describe, all in one line."""
    wanted = {
        "max_grad_norm": 0.0,
        "gradient_accumulation_steps": 1,
        "fp16": False,
        "bf16": False,
        "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None,
        "load_best_model_at_end": False,
        "deepspeed": None,
        "fsdp": None,
    }
    wrong = {name: value for name, value in wanted.items() if (getattr(args, name, None) or None) != (value or None)}
    if wrong:
        found = ", ".join(f"{name}={getattr(args, name)!r}" for name in wrong)
        right = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise RecordError(f"a training record can not describe {found}; set TrainingArguments({right})")
    if args.world_size > 1 or args.n_gpu > 1:
        raise RecordError(
            f"the training runs on {max(args.world_size, args.n_gpu)} devices, and a record tells of one; start one "
            "process that sees one device"
        )
