"""The record that transformers.Trainer leaves: replayed it gives the trained weights; the rest is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from callback_cases import WithBatchNorm, hooks_of, named_rows
from torch import nn
from training_cases import same
from transformers_cases import options_of, rows_of

import unlearn
from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.models import build_model
from unlearn.training import TRAJECTORY_FILE, TrainerRecorder, Trajectory, replay

PLAIN = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "num_train_epochs": 3}
QUIET = {"report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def dataset(rows: Rows) -> list[dict[str, Any]]:
    """What the Trainer reads."""
    return [{**inputs, "labels": label} for inputs, label in rows]  # type: ignore[dict-item]


def trained(
    model: nn.Module,
    rows: Rows,
    folder: Path,
    recorder: Any = None,
    optimizer: Any = None,
    more: Any = (),
    **options: Any,
) -> Any:
    """The Trainer after training."""
    arguments = {"per_device_train_batch_size": 6, **PLAIN, **QUIET, **options}
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(output_dir=str(folder / "trainer"), **arguments),
        train_dataset=dataset(rows),
        callbacks=[*more, *([] if recorder is None else [recorder])],
        optimizers=(optimizer, None),
    )
    trainer.train()
    return trainer


def tiny_bert(**options: Any) -> nn.Module:
    described = options_of("bert")
    described["config"] |= NO_DROPOUT | options
    return build_model("hf-sequence-classification", seed=0, **described)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)


@pytest.mark.parametrize("make", [None, momentum, adam], ids=["its own sgd", "momentum", "adam"])
def test_the_replayed_record_gives_the_trained_weights(make: Any, tmp_path: Path) -> None:
    # rejects ids in the order of the dataset, one batch off (it is fetched ahead), or rates after the scheduler's step
    model, rows = WithBatchNorm(), named_rows()
    start, recorder = copy.deepcopy(model), TrainerRecorder(tmp_path / "run", rows)
    trained(model, rows, tmp_path, recorder, make and make(model), dataloader_num_workers=1 if make is adam else 0)
    record = recorder.record
    assert (record.steps, sorted(record.snapshots)) == (12, [0, 4, 8, 12])
    assert record.order is not None
    passes = [[row for step in steps for row in record.order.batch(step)] for steps in (range(4), range(4, 8))]
    assert all(sorted(rows_seen) == sorted(rows.ids) for rows_seen in passes)
    assert record.order.batch(0) != record.order.batch(4)
    assert record.rates()[-1] < record.rates()[0]
    assert same(replay(start, rows, record)[0], model)
    middle = record.snapshot(8)
    middle.restore(start)
    assert same(replay(start, rows, record, start=8, snapshot=middle)[0], model)
    assert hooks_of(model) == 0
    assert Trajectory.load(tmp_path / "run" / TRAJECTORY_FILE).count.tolist() == [3] * len(rows)


def test_a_record_of_a_transformer_carries_an_edit(tmp_path: Path) -> None:
    model, rows = tiny_bert(), rows_of("bert")
    start, recorder = copy.deepcopy(model), TrainerRecorder(tmp_path / "run", rows, snapshots=[0, 2])
    trained(model, rows, tmp_path, recorder, per_device_train_batch_size=4)
    record = recorder.record
    torch.testing.assert_close(replay(start, rows, record)[0].state_dict(), model.state_dict(), rtol=0, atol=1e-6)
    edit = unlearn.remove(model.eval(), rows, ["row-1"], record=record, budget=3.0)
    assert record.order is not None
    retrained, _ = replay(start, rows.without(["row-1"]), record)
    before, after = (
        sum(float((a - b).detach().square().sum()) for a, b in zip(m.parameters(), retrained.parameters(), strict=True))
        for m in (model, edit.model)
    )
    assert after < 0.5 * before


def test_watching_changes_nothing(tmp_path: Path) -> None:
    # rejects a checked gradient that moves batch norms or draws from the training's random stream
    ours, theirs, rows = WithBatchNorm(), WithBatchNorm(), named_rows()
    trained(ours, rows, tmp_path, TrainerRecorder(tmp_path / "run", rows))
    trained(theirs, rows, tmp_path)
    assert same(ours, theirs)


ARGUMENTS = {
    "clipping": ({"max_grad_norm": 1.0}, r"max_grad_norm=1.0; set TrainingArguments\(max_grad_norm=0.0\)"),
    "accumulation": ({"gradient_accumulation_steps": 2}, r"set TrainingArguments\(gradient_accumulation_steps=1\)"),
    "half precision": ({"bf16": True}, r"set TrainingArguments\(bf16=False\)"),
    "smoothing": ({"label_smoothing_factor": 0.1}, r"set TrainingArguments\(label_smoothing_factor=0.0\)"),
    "noise": ({"neftune_noise_alpha": 5.0}, r"set TrainingArguments\(neftune_noise_alpha=None\)"),
    "AdamW": ({"optim": "adamw_torch"}, r"AdamW|decoupled_weight_decay.*: TrainingArguments\(optim='sgd'\)"),
    "decay of some": ({"weight_decay": 0.1}, r"2 parameter groups that differ in weight_decay.*: TrainingArguments"),
}


@pytest.mark.parametrize(("options", "message"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments_that_a_record_can_not_describe_are_refused(
    options: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # older arguments set it and leave it
    model, rows = tiny_bert(), rows_of("bert")
    with pytest.raises(RecordError, match=message):
        trained(model, rows, tmp_path, TrainerRecorder(tmp_path / "run", rows), **options)
    assert same(model, tiny_bert())


def test_half_precision_that_the_arguments_do_not_tell_of_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the gradient that is checked is of half precision too, so it does not tell
    class Prepared(torch.optim.SGD):
        accelerator_state = type("State", (), {"mixed_precision": "bf16"})

    model, rows = WithBatchNorm(), named_rows()
    recorder = TrainerRecorder(tmp_path / "run", rows)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), max_grad_norm=0.0, use_cpu=True)
    state = transformers.TrainerState()
    with pytest.raises(RecordError, match=r"in 'bf16'.*ACCELERATE_MIXED_PRECISION=no"):
        recorder.on_train_begin(arguments, state, None, model=model, optimizer=Prepared(model.parameters(), lr=0.1))


def test_dropout_is_refused_with_the_words_of_the_configuration(tmp_path: Path) -> None:
    rows = rows_of("bert")
    with pytest.raises(RecordError, match=r"drops at random in 'bert.* build it with hidden_dropout_prob=0 in"):
        trained(tiny_bert(hidden_dropout_prob=0.1), rows, tmp_path, TrainerRecorder(tmp_path / "run", rows))
    with pytest.raises(
        RecordError, match=r"'body.3', and a replay would draw otherwise: build it with probabilities of 0"
    ):
        trained(WithBatchNorm(0.5), named_rows(), tmp_path, TrainerRecorder(tmp_path / "run", named_rows()))


class Tripled(WithBatchNorm):
    def forward(self, input: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        returned = super().forward(input, labels)
        return returned if labels is None else {**returned, "loss": 3 * returned["loss"]}


OTHERS = {
    "another loss": (Tripled, named_rows, "is 3 times as long as that of the mean classification loss"),
    "other labels": (
        WithBatchNorm,
        lambda: named_rows().relabelled({"r0": 2, "r1": 2, "r2": 2, "r3": 2}),
        "of its rows",
    ),
    "another order": (WithBatchNorm, lambda: named_rows().at(torch.arange(22).flip(0)), "data in the dataset's order"),
    "fewer rows": (WithBatchNorm, lambda: named_rows().without(["r3"]), "dataset has 22 rows and data 21"),
}


@pytest.mark.parametrize(("build", "make_rows", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_steps_on_something_else_than_the_rows_are_refused(
    build: Any, make_rows: Any, message: str, tmp_path: Path
) -> None:
    model = build()
    optimizer = momentum(model)
    with pytest.raises(RecordError, match=message):
        trained(model, named_rows(), tmp_path, TrainerRecorder(tmp_path / "run", make_rows()), optimizer)
    assert hooks_of(model, optimizer) == 0


def test_a_parameter_that_decay_leaves_out_is_refused(tmp_path: Path) -> None:
    # torch passes over a parameter without a gradient; a replay would decay it
    model, rows = WithBatchNorm(), named_rows()
    model.aside = nn.Linear(2, 2)
    recorder = TrainerRecorder(tmp_path / "run", rows)
    with pytest.raises(RecordError, match=r"'aside.weight' got no gradient.*requires_grad_\(False\)"):
        trained(model, rows, tmp_path, recorder, momentum(model))
    trained(model, rows, tmp_path, recorder)  # and where there is no decay it stays anyway


def test_weights_that_are_changed_after_the_last_step_are_refused(tmp_path: Path) -> None:
    class Averages(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["model"].body[0].weight.data.mul_(0.5)

    rows = named_rows()
    recorder = TrainerRecorder(tmp_path / "run", rows)
    with pytest.raises(RecordError, match="weights changed after the last step"):
        trained(WithBatchNorm(), rows, tmp_path, recorder, more=[Averages()])
    with pytest.raises(RecordError, match="there is no record yet"):
        recorder.record  # noqa: B018


def test_a_causal_model_wants_shifted_labels(tmp_path: Path) -> None:
    # the model shifts by itself, the rows are shifted beforehand; and a first label, which is never predicted, counts
    # among those that the Trainer divides by
    described = options_of("gpt2-lm-own-head")
    described["config"] |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    tokens = torch.randint(3, 23, (6, 8), generator=torch.Generator().manual_seed(0))
    masked = tokens.clone()
    masked[:, 0] = -100
    shown = Rows.from_tensors({"input_ids": tokens}, masked)
    shifted = Rows.from_tensors({"input_ids": tokens}, masked.roll(-1, 1))
    model = build_model("hf-causal-lm", seed=0, **described)
    start = copy.deepcopy(model)
    wrong = TrainerRecorder(tmp_path / "wrong", shown, task="language-modelling")
    with pytest.raises(RecordError, match="shifted by one for a causal model"):
        trained(model, shown, tmp_path, wrong, per_device_train_batch_size=4)
    model.load_state_dict(start.state_dict())
    recorder = TrainerRecorder(tmp_path / "right", shifted, task="language-modelling")
    trained(model, shown, tmp_path, recorder, per_device_train_batch_size=4)
    replayed = replay(start, shifted, recorder.record)[0]
    torch.testing.assert_close(replayed.state_dict(), model.state_dict(), rtol=0, atol=1e-6)
