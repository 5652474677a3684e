"""What a training leaves: order, rates, snapshots, trajectory; by the trainer and by a user's own loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from training_cases import SETTINGS, SGD, network, plain_loop, rows_of, same, torch_optimizer

from unlearn.errors import FolderError, InputError, RecordError
from unlearn.training import TRAJECTORY_FILE, Recorder, TrainSettings, Trajectory, replay, train

each_optimizer = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


@each_optimizer
def test_snapshots_hold_weights_and_optimizer_state_of_their_step(settings: TrainSettings, tmp_path: Path):
    # rejects a snapshot a step early or late, references in place of copies, and lost optimizer state
    rows = rows_of()
    model, record = train(network(), rows, settings, folder=tmp_path, snapshot_epochs=[0, 1, 2])
    assert sorted(record.snapshots) == [0, 4, 8, 12]
    expected: dict[int, dict[str, Tensor]] = {}

    def note(step: int, model: nn.Module, optimizer: torch.optim.Optimizer, *_: Tensor) -> None:
        state = {f"weight {name}": p.detach().clone() for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            state |= {f"{entry} {name}": v.clone() for entry, v in optimizer.state[p].items()}
        expected[step + 1] = state

    batches = [record.order.batch(step) for step in range(12)]  # type: ignore[union-attr]
    plain_loop(network(), rows, batches, settings.rates(20), settings, note)
    for step in (4, 8, 12):
        snapshot = record.snapshot(step)
        found = {f"weight {name}": v for name, v in snapshot.weights.items()}
        found |= {key.replace("/", " "): v for key, v in snapshot.optimizer.items()}
        assert found.keys() == expected[step].keys()
        assert all(torch.equal(value, expected[step][key]) for key, value in found.items())
        assert any(key.startswith(("momentum_buffer", "exp_avg_sq")) for key in found)
    first, last = record.snapshot(0), record.snapshot(12)
    assert not first.optimizer
    assert all(torch.equal(v, network().state_dict()[name]) for name, v in first.weights.items())
    assert all(torch.equal(v, model.state_dict()[name]) for name, v in last.weights.items())


@each_optimizer
def test_a_users_own_loop_leaves_the_record_of_the_trainer(settings: TrainSettings, tmp_path: Path):
    # rejects rates read after the scheduler's step, and another shape of record for users
    rows = rows_of()
    trained, ours = train(network(), rows, settings, seed=2, folder=tmp_path / "ours", snapshot_epochs=[0, 1, 2])
    batches = [ours.order.batch(step) for step in range(12)]  # type: ignore[union-attr]

    model = network()
    optimizer = torch_optimizer(model, settings)
    factors = [rate / settings.lr for rate in settings.rates(20)]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[min(step, 11)])
    recorder = Recorder(model, optimizer, tmp_path / "own", snapshots=4, seed=2, data_fingerprint=rows.fingerprint)
    for ids in batches:
        inputs, labels = rows.batch(rows.positions(ids))
        outputs = model(inputs)
        optimizer.zero_grad()
        F.cross_entropy(outputs, labels).backward()
        optimizer.step()
        recorder.step(ids, outputs, labels)
        scheduler.step()
    own = recorder.finish()

    assert [own.order.batch(step) for step in range(12)] == batches  # type: ignore[union-attr]
    assert own.rates() == pytest.approx(ours.rates(), rel=1e-12)
    described = {k: v for k, v in ours.to_dict().items() if k not in ("lr_runs", "snapshots")}
    assert {k: v for k, v in own.to_dict().items() if k not in ("lr_runs", "snapshots")} == described
    assert sorted(own.snapshots) == sorted(ours.snapshots)
    for one, two in zip(model.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)  # the scheduler rounds its rates
    a, b = (Trajectory.load(tmp_path / folder / TRAJECTORY_FILE) for folder in ("ours", "own"))
    torch.testing.assert_close(a.margin, b.margin, rtol=1e-5, atol=1e-6)
    # and it can be replayed
    snapshot = own.snapshot(4)
    start = network()
    snapshot.restore(start)
    assert same(replay(start, rows, own, start=4, snapshot=snapshot)[0], model)


def test_trajectory_means_are_of_the_forward_passes_made_during_training(tmp_path: Path):
    # rejects margins of the final model, of the weights after the step, or weighted by batch
    rows = rows_of()
    _, record = train(network(), rows, SGD, folder=tmp_path)
    batches = [record.order.batch(step) for step in range(12)]  # type: ignore[union-attr]
    logits: dict[str, list[Tensor]] = {row: [] for row in rows.ids}

    def note(step: int, _m: nn.Module, _o: torch.optim.Optimizer, outputs: Tensor, _l: Tensor) -> None:
        for row, z in zip(batches[step], outputs, strict=True):
            logits[row].append(z.double())

    plain_loop(network(), rows, batches, SGD.rates(20), SGD, note)
    found = Trajectory.load(tmp_path / TRAJECTORY_FILE)
    assert found.ids == tuple(sorted(rows.ids))
    assert found.count.tolist() == [3] * 20
    for i, row in enumerate(found.ids):
        label = int(rows.labels[rows.positions([row])])
        margins = [float(z[label] - max(z[c] for c in range(3) if c != label)) for z in logits[row]]
        assert float(found.margin[i]) == pytest.approx(sum(margins) / 3, rel=1e-12)
        torch.testing.assert_close(found.logits[i], torch.stack(logits[row]).mean(0), rtol=1e-12, atol=1e-14)


def recorder_of(folder: Path, **options: Any) -> Recorder:
    model = network()
    return Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), folder, **options)


def test_a_row_drawn_twice_into_one_batch_counts_twice(tmp_path: Path):
    # rejects sum[at] += value, which keeps one of two values for one row
    recorder = recorder_of(tmp_path)
    recorder.step(["a", "a", "b"], torch.tensor([[1.0, 0.0], [4.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0, 1]))
    recorder.step(["b"], torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    record = recorder.finish()
    found = Trajectory.load(tmp_path / TRAJECTORY_FILE)
    assert found.margin.tolist() == [2.5, -1.0]
    assert found.logits.tolist() == [[2.5, 0.0], [1.0, 0.0]]
    assert found.count.tolist() == [2, 2]
    assert record.order.batch(0) == ["a", "a", "b"]  # type: ignore[union-attr]


def test_a_missing_or_damaged_trajectory_is_refused(tmp_path: Path):
    with pytest.raises(RecordError, match="no trajectory at"):
        Trajectory.load(tmp_path / TRAJECTORY_FILE)
    train(network(), rows_of(), SGD, folder=tmp_path)
    path = tmp_path / TRAJECTORY_FILE
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RecordError, match="is damaged"):
        Trajectory.load(path)


def test_snapshots_by_number_by_list_and_none(tmp_path: Path):
    for when, expected in ((2, [0, 2, 4, 5]), ([3], [3, 5]), ([0, 5], [0, 5]), (None, [5])):
        recorder = recorder_of(tmp_path, snapshots=when)
        for _ in range(5):
            recorder.step(["a"])
        assert sorted(recorder.finish().snapshots) == expected
    with pytest.raises(InputError, match="snapshots is 0; give 1 or more"):
        recorder_of(tmp_path, snapshots=0)


def test_bad_use_is_refused(tmp_path: Path):
    recorder = recorder_of(tmp_path)
    with pytest.raises(RecordError, match="saw no step"):
        recorder.finish()
    with pytest.raises(InputError, match="outputs without labels"):
        recorder.step(["a"], torch.zeros(1, 2))
    with pytest.raises(InputError, match="2 ids, 1 outputs, 1 labels"):
        recorder.step(["a", "b"], torch.zeros(1, 2), torch.zeros(1).long())
    with pytest.raises(InputError, match="labels that are no classes"):
        recorder.step(["a"], torch.zeros(1, 2), torch.zeros(1))
    recorder.step(["a"])
    recorder.finish()
    with pytest.raises(RecordError, match="is finished"):
        recorder.step(["a"])


MODEL = network()
REFUSED = {
    "AdamW": (lambda p: torch.optim.AdamW(p), "AdamW|decoupled_weight_decay"),
    "RMSprop": (lambda p: torch.optim.RMSprop(p), "is RMSprop"),
    "nesterov": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True), "uses nesterov"),
    "dampening": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.1), "uses dampening"),
    "maximize": (lambda p: torch.optim.SGD(p, 0.1, maximize=True), "uses maximize"),
    "amsgrad": (lambda p: torch.optim.Adam(p, amsgrad=True), "uses amsgrad"),
    "two groups": (lambda p: torch.optim.SGD([{"params": p[:2]}, {"params": p[2:], "lr": 0.2}], 0.1), "2 parameter gr"),
    "half the parameters": (lambda p: torch.optim.SGD(p[2:], 0.1), "holds 2 of the model's 4 trainable"),
    "another model": (lambda p: torch.optim.SGD(network().parameters(), 0.1), "0 of the model's 4 .* and 4 others"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_optimizers_that_the_record_can_not_describe_are_refused(make: Any, message: str, tmp_path: Path):
    # rejects a replay that would silently run another optimizer
    with pytest.raises(RecordError, match=message):
        Recorder(MODEL, make(list(MODEL.parameters())), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_parameters_may_stay_outside_the_optimizer(tmp_path: Path):
    model = network()
    model[0].requires_grad_(False)  # type: ignore[index]
    recorder = Recorder(model, torch.optim.Adam(model[2].parameters()), tmp_path)  # type: ignore[index]
    recorder.step(["a"])
    assert recorder.finish().optimizer == "adam"


def test_a_momentum_that_changes_during_training_is_refused(tmp_path: Path):
    # rejects the momentum of the first step for all steps (OneCycleLR cycles it unasked)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recorder = Recorder(model, optimizer, tmp_path)
    recorder.step(["a"])
    optimizer.param_groups[0]["momentum"] = 0.85
    with pytest.raises(RecordError, match=r"settings changed .*cycle_momentum=False"):
        recorder.step(["a"])


def test_a_diverged_model_is_not_written_and_an_unwritable_folder_is_named(tmp_path: Path):
    model = network()
    recorder = Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path)
    recorder.step(["a"])
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(InputError, match=r"'0\.weight' is NaN or infinite"):
        recorder.finish()
    assert not list((tmp_path / "snapshots").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="can not create folder"):
        recorder_of(tmp_path / "file")


def test_a_trajectory_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    """Rejects several metadata entries, which safetensors writes in no fixed order."""
    trajectory = Trajectory(("a",), torch.zeros(1), torch.zeros(1, 2), torch.ones(1))
    written = set()
    for _ in range(16):
        trajectory.save(tmp_path / "t.safetensors")
        written.add((tmp_path / "t.safetensors").read_bytes())
    assert len(written) == 1
