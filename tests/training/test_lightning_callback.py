"""The record that lightning.Trainer leaves: replayed it gives the trained weights; what it can not tell is refused."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from callback_cases import WithBatchNorm, hooks_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from training_cases import rows_of, same

import unlearn
from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.training import LightningRecorder, replay

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
    """A module whose own forward gives logits."""

    def __init__(self, optimizer: str = "sgd", factor: float = 1.0, clip: float | None = None) -> None:
        super().__init__()
        self.network = WithBatchNorm().body
        self.kind, self.factor, self.clip = optimizer, factor, clip

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        return self.factor * nn.functional.cross_entropy(self(inputs), labels)

    def configure_optimizers(self) -> Any:
        made = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
            "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
            "adamw": torch.optim.AdamW,
        }[self.kind](self.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(made, 2, 0.7)
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.clip)


def pair(rows: Rows) -> tuple[Tensor, Tensor]:
    inputs, labels = rows.batch(torch.arange(len(rows)))
    assert isinstance(inputs, Tensor)
    return inputs, labels


def loader_of(rows: Rows) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*pair(rows)), batch_size=6, shuffle=True)


def fit(module: Any, loader: Any, recorder: Any = None, more: Any = (), **options: Any) -> None:
    lightning.seed_everything(0, verbose=False)
    callbacks = [*more, *([] if recorder is None else [recorder])]
    with torch.random.fork_rng():
        lightning.Trainer(max_epochs=3, accelerator="cpu", devices=1, callbacks=callbacks, **(QUIET | options)).fit(
            module, loader
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_replayed_record_gives_the_trained_weights(optimizer: str, tmp_path: Path) -> None:
    # rejects the batch fetched ahead taken for the present one, and a gradient checked after the closure moved it
    rows, module = rows_of(22), Module(optimizer)
    start, loader = copy.deepcopy(module), loader_of(rows)
    recorder = LightningRecorder(tmp_path, rows, loader)
    fit(module, loader, recorder)
    record = recorder.record
    assert (record.steps, sorted(record.snapshots)) == (12, [0, 4, 8, 12])
    assert record.rates()[[0, 1, 2]].tolist() == pytest.approx([record.rates()[0]] * 2 + [0.7 * record.rates()[0]])
    assert same(replay(start, rows, record)[0], module)
    assert hooks_of(module) == 0
    assert type(loader.batch_sampler.sampler) is RandomSampler  # type: ignore[union-attr]
    edit = unlearn.remove(module.eval(), rows, ["r1"], record=record, budget=3.0, damping=0.1)
    assert 0 < edit.cost.replay <= 3.0


def test_a_part_of_the_module_and_a_part_of_the_batches(tmp_path: Path) -> None:
    rows, module = rows_of(22), Module()
    start, loader = copy.deepcopy(module.network), loader_of(rows)
    recorder = LightningRecorder(tmp_path, rows, loader, model=module.network)
    fit(module, loader, recorder, limit_train_batches=2)
    record = recorder.record
    assert sorted(record.snapshots) == [0, 2, 4, 6]
    assert record.order is not None
    assert same(replay(start, rows.only(record.order.ids), record)[0], module.network)


def test_watching_changes_nothing(tmp_path: Path) -> None:
    # rejects a checked gradient that moves batch norms or draws from the training's random stream
    rows, ours, theirs = rows_of(22), Module(), Module()
    loader = loader_of(rows)
    fit(ours, loader, LightningRecorder(tmp_path, rows, loader))
    fit(theirs, loader)
    assert same(ours, theirs)


SETTINGS = {
    "clipping": ({"gradient_clip_val": 1.0}, r"gradient_clip_val=1.0 \(set None\)"),
    "accumulation": ({"accumulate_grad_batches": 2}, r"accumulate_grad_batches=2 \(set 1\)"),
    "half precision": ({"precision": "bf16-mixed"}, r"precision='bf16-mixed' \(set '32-true'\)"),
    "overfit": ({"overfit_batches": 2}, "another DataLoader than LightningRecorder was given"),
    "averaging": (
        {"more": [lightning.callbacks.StochasticWeightAveraging(0.1)]},
        r"StochasticWeightAveraging \(leave it out\)",
    ),
    "accumulation later": (
        {"more": [lightning.callbacks.GradientAccumulationScheduler({1: 2})]},
        "batch 0 was followed by 0 steps of the optimizer",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("options", "message"), SETTINGS.values(), ids=SETTINGS.keys())
def test_trainers_that_a_record_can_not_describe_are_refused(options: Any, message: str, tmp_path: Path) -> None:
    rows, module = rows_of(22), Module()
    loader = loader_of(rows)
    with pytest.raises(RecordError, match=message):
        fit(module, loader, LightningRecorder(tmp_path, rows, loader), **options)
    assert hooks_of(module) == 0
    assert type(loader.batch_sampler.sampler) is RandomSampler  # type: ignore[union-attr]


def test_what_the_module_computes_otherwise_is_refused(tmp_path: Path) -> None:
    # clipping by the module's own hook is no setting; only the gradient tells of it
    rows = rows_of(22)
    for module, message in (
        (Module(clip=1e-3), "as that of the mean classification loss"),
        (Module(factor=2.0), "is 2 times as long"),
        (Module("adamw"), "AdamW|decoupled_weight_decay"),
    ):
        loader = loader_of(rows)
        with pytest.raises(RecordError, match=message):
            fit(module, loader, LightningRecorder(tmp_path, rows, loader))


def test_loaders_whose_rows_have_no_positions_are_refused(tmp_path: Path) -> None:
    rows = rows_of(22)
    for loader, message in (
        (DataLoader(TensorDataset(*pair(rows)), batch_sampler=[[0, 1], [2]]), "has list as its batch sampler"),
        (DataLoader(TensorDataset(*pair(rows)), batch_size=None), "has NoneType as its batch sampler"),
        ({"a": loader_of(rows)}, "rows come from dict over dict"),
        (loader_of(rows_of(20)), "dataset has 20 rows and data 22"),
    ):
        with pytest.raises(RecordError, match=message):
            LightningRecorder(tmp_path, rows, loader)  # type: ignore[arg-type]
