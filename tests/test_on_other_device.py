"""Every public path with a model on another device: it runs, mixes no devices, and gives what the CPU gives."""

from __future__ import annotations

import ast
import copy
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from other_device import Elsewhere, OtherDevice, moved
from torch import Tensor, nn

import unlearn
from unlearn.curvature import conjugate_gradient, fit_curvature, gauss_newton, loss_gradient, make_solver
from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.predict import predict
from unlearn.repair import Changes, apply_changes, restricted_edit
from unlearn.repair.calibration import losses
from unlearn.tasks import get_task
from unlearn.training import TrainingRecord, TrainSettings, replay, train

# PyTorch warns that copies into its own meta tensors do nothing; into these they do
pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
Trained = tuple[nn.Module, Rows, TrainingRecord]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(11, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(words)).mean(1))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    )


@pytest.fixture(scope="module", params=["images", "words", "adam"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.manual_seed(0)
    words = request.param == "words"
    inputs = torch.randint(11, (60, 5)) if words else torch.randn(60, 1, 8, 8)
    rows = Rows.from_tensors(inputs, torch.randint(3, (60,)))
    settings = TrainSettings(
        epochs=4,
        batch_size=20,
        lr=0.01 if request.param == "adam" else 0.1,
        optimizer="adam" if request.param == "adam" else "sgd",
    )
    start = Words() if words else images()
    model, record = train(start, rows, settings, folder=tmp_path_factory.mktemp("run"), snapshot_epochs=range(5))
    return model, rows, record


def here(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert all(isinstance(value, Elsewhere) for value in found.values())
        for name, value in wanted.items():
            torch.testing.assert_close(here(found[name]), value, rtol=1e-3, atol=1e-5, msg=name)
    else:
        torch.testing.assert_close(torch.as_tensor(here(found)), torch.as_tensor(wanted), rtol=1e-3, atol=1e-5)


def ones(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(p.detach()) for name, p in model.named_parameters()}


def cg(model: nn.Module, rows: Rows) -> dict[str, Tensor]:
    operator, curvature = gauss_newton(model, rows), fit_curvature(model, rows, fisher="exact")
    return conjugate_gradient(
        lambda v: {n: part + 0.1 * v[n] for n, part in operator.matvec(v).items()},
        ones(model),
        preconditioner=lambda r: curvature.solve(r, damping=0.1),
        iterations=3,
    ).solution


def asked(rows: Rows) -> Rows:
    """A few rows with other ids."""
    inputs, labels = rows.batch(torch.arange(8))
    return Rows.from_tensors(inputs, labels, ids=[f"asked-{i}" for i in range(8)], classes=3)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def edited(model: nn.Module, rows: Rows, record: TrainingRecord) -> unlearn.Edit:
    return unlearn.remove(model, rows, rows.ids[:3], record=record, budget=0, method="newton")


def evidence_of(edit: unlearn.Edit, rows: Rows) -> list[dict[str, Any]]:
    inputs, labels = rows.batch(torch.arange(30, 60))
    held_out = Rows.from_tensors(inputs, labels, ids=[f"held-{i}" for i in range(30)], classes=3)
    return list(unlearn.evidence(edit, held_out=held_out).against_held_out)


def optimum(model: nn.Module, rows: Rows) -> dict[str, Tensor]:
    inputs, labels = rows.batch(torch.arange(len(rows)))
    flat = Rows.from_tensors(inputs.flatten(1), labels, classes=3)  # type: ignore[union-attr]
    linear = nn.Linear(64, 3)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    place = moved if isinstance(next(model.parameters()), Elsewhere) else copy.copy
    return weights_of(unlearn.train_to_optimum(place(linear), flat, weight_decay=1.0, gradient_tolerance=1e-4)[0])


def sharded(model: nn.Module, rows: Rows) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        shards = unlearn.score_shards("self-influence", model, rows, folder, curvature=fit_curvature(model, rows))
        return torch.tensor([value for _, value in shards.top(9)])


def retrained_on_subsets(model: nn.Module, rows: Rows) -> list[float]:
    settings = TrainSettings(epochs=1, batch_size=20)
    build: Callable[[int], nn.Module] = lambda seed: copy.deepcopy(model)  # noqa: E731
    found = unlearn.datamodel_retrains(build, rows, asked(rows), settings, subsets=3)
    attributions = unlearn.influence(model, rows, asked(rows))
    score = unlearn.linear_datamodeling_score(attributions, found, resamples=10)
    return [*found.losses.flatten().tolist(), score.mean]


def calibrated(model: nn.Module, rows: Rows) -> float:
    """The gap is made: other rows, every third with another label."""
    inputs, labels = rows.batch(torch.arange(240) % 60)
    labels = (labels + (torch.arange(240) % 3 == 0).long()) % 3
    held = Rows.from_tensors(inputs + 0.1, labels, ids=[f"held-{i}" for i in range(240)])  # type: ignore[operator]
    return unlearn.calibrate_damping(model, rows, held, weight_decay=0.1).damping


def chained(model: nn.Module, rows: Rows, record: TrainingRecord) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        chain = unlearn.EditChain(model, rows, record=record, folder=folder, budget=1)
        for row in ("0", "7"):
            chain.remove([row])
    return weights_of(chain.model)


FOUND: dict[str, Callable[[nn.Module, Rows, TrainingRecord], Any]] = {
    "outputs": lambda m, rows, record: predict(m, rows),
    "gradient": lambda m, rows, record: loss_gradient(m, rows),
    "Gauss-Newton": lambda m, rows, record: gauss_newton(m, rows).matvec(ones(m)),
    "conjugate gradients": lambda m, rows, record: cg(m, rows),
    "EK-FAC": lambda m, rows, record: fit_curvature(m, rows, fisher="exact").solve(ones(m), damping=0.1),
    "K-FAC": lambda m, rows, record: fit_curvature(m, rows, fisher="exact", kind="kfac").solve(ones(m), damping=0.1),
    "sampled labels": lambda m, rows, record: fit_curvature(m, rows).solve(ones(m), damping=0.1),
    "self-influence": lambda m, rows, record: unlearn.self_influence(m, rows, weight_decay=1e-3).values,
    "GIF scores": lambda m, rows, record: unlearn.gif_scores(m, rows, weight_decay=1e-3).values,
    "influence": lambda m, rows, record: unlearn.influence(m, rows, rows.at(torch.arange(3)), weight_decay=1e-3),
    "loss": lambda m, rows, record: unlearn.detect.loss(m, rows).values,
    "harm": lambda m, rows, record: unlearn.harm(m, rows, asked(rows), weight_decay=1e-3).values,
}
ONCE: dict[str, Callable[[nn.Module, Rows, TrainingRecord], Any]] = {
    "self-influence by layer": lambda m, rows, record: unlearn.layer_self_influence(m, rows).values,
    "harm by layer": lambda m, rows, record: unlearn.layer_harm(m, rows, asked(rows)).values,
    "self-influence over snapshots": lambda m, rows, record: (
        unlearn.self_influence(m, rows, record=record, steps=[6, 12], relative="parameters").values
    ),
    "TracIn": lambda m, rows, record: unlearn.tracin(m, rows, record=record, validation=asked(rows)).values,
    "top influence": lambda m, rows, record: (
        unlearn.top_influence(m, rows, asked(rows), 2, relative="loss").harmful_values
    ),
    "explanation": lambda m, rows, record: [
        row.influence for one in unlearn.explain(m, rows, asked(rows), top=2, label="predicted") for row in one.harmful
    ],
    "outlier gradients": lambda m, rows, record: unlearn.outlier_gradients(m, rows, detector="l1").values,
    "isolation forest": lambda m, rows, record: unlearn.outlier_gradients(m, rows, trees=5).values,
    "sketches": lambda m, rows, record: unlearn.gradient_sketches(m, rows, size=16).values,
    "sketches through a curvature": lambda m, rows, record: (
        unlearn.gradient_sketches(m, rows, size=16, curvature=fit_curvature(m, rows, fisher="exact")).values
    ),
    "duplicates": lambda m, rows, record: unlearn.duplicate_scores(rows, model=m).values,
    "GIF, exact": lambda m, rows, record: (
        unlearn.gif_exact(m, asked(rows).at(torch.arange(2)), ratio=0.5, damping=1.0, tolerance=1e-4).values
    ),
    "GIF of the data's units": lambda m, rows, record: (
        unlearn.gif_scores(m, rows, scope="data", select="gradients", method="frozen", weight_decay=1e-3).values
    ),
    "LiSSA": lambda m, rows, record: make_solver("lissa", m, rows).solve(ones(m), damping=1.0),
    "sampled rows": lambda m, rows, record: [
        float(row) for row in unlearn.curvature_rows(m, rows, 12, method="features").ids
    ],
    "out of sample": lambda m, rows, record: (
        unlearn.out_of_sample(m, rows, TrainSettings(epochs=1, batch_size=20), folds=2, through="plain").values
    ),
    "calibration": lambda m, rows, record: losses(m, rows, get_task("classification")),
    "training": lambda m, rows, record: weights_of(train(m, rows, TrainSettings(epochs=2, batch_size=20, lr=0.01))[0]),
    "replay": lambda m, rows, record: weights_of(replay(m, rows.without(["3"]), record, start=9)[0]),
    "evidence": lambda m, rows, record: [line["auc"] for line in evidence_of(edited(m, rows, record), rows)],
    "verdict": lambda m, rows, record: [
        value
        for line in unlearn.verify(edited(m, rows, record), test=asked(rows), references=2).table
        for value in line.values()
        if isinstance(value, float)
    ],
    "chain": lambda m, rows, record: chained(m, rows, record),
    "a class removed": lambda m, rows, record: weights_of(
        unlearn.remove_class(m, rows, 1, record=record, budget=1).model  # many rows: its head is trained again
    ),
    "optimum": lambda m, rows, record: optimum(m, rows),
    "audit": lambda m, rows, record: [
        value
        for line in unlearn.membership_audit(edited(m, rows, record), shadows=6, unlearned=0).table
        for value in line.values()
        if isinstance(value, float)
    ],
    "models compared": lambda m, rows, record: [
        value
        for line in unlearn.compare_models(m, [edited(m, rows, record).model, m], asked(rows)).table
        for value in line.values()
        if isinstance(value, float)
    ],
    "shards": lambda m, rows, record: sharded(m, rows),
    "left out of folds": lambda m, rows, record: unlearn.out_of_sample_logits(
        m, rows, TrainSettings(epochs=1, batch_size=20), folds=2
    ),
    "subsets retrained": lambda m, rows, record: retrained_on_subsets(m, rows),
    "damping calibrated": lambda m, rows, record: calibrated(m, rows),
    "own loss": lambda m, rows, record: (
        unlearn.self_influence(
            m, rows, task=unlearn.OwnLoss(lambda z, y: nn.functional.cross_entropy(z, y, reduction="none")), damping=0.1
        ).values
    ),
    "relabelled": lambda m, rows, record: weights_of(
        unlearn.relabel(m, rows, {"0": (int(rows.labels[0]) + 1) % 3}, damping=0.3, weight_decay=0.1).model
    ),
    "class and output removed": lambda m, rows, record: weights_of(
        unlearn.remove_class(m, rows, 1, drop_output=True, damping=0.3, weight_decay=0.1).model
    ),
}
"""What is run on one of the models only."""
EDITS: dict[str, dict[str, Any]] = {
    "Newton": {"budget": 0, "method": "newton"},
    "unrolled": {"budget": 0, "method": "unrolled"},
    "rewind, unrolled, replay": {"budget": 1},
}


@pytest.mark.parametrize("what", FOUND)
def test_it_is_found_as_on_the_cpu(trained: Trained, what: str) -> None:
    model, rows, record = trained
    wanted = FOUND[what](model, rows, record)
    other = moved(copy.deepcopy(model))
    with OtherDevice():
        found = FOUND[what](other, rows, record)
    same(found, wanted)


@pytest.mark.parametrize("trained", ["images"], indirect=True)
@pytest.mark.parametrize("what", ONCE)
def test_it_is_found_once_as_on_the_cpu(trained: Trained, what: str) -> None:
    model, rows, record = trained
    wanted = ONCE[what](model, rows, record)
    other = moved(copy.deepcopy(model))
    with OtherDevice():
        found = ONCE[what](other, rows, record)
    same(found, wanted)


@pytest.mark.parametrize("how", EDITS)
def test_edits_are_made_as_on_the_cpu(trained: Trained, how: str) -> None:
    model, rows, record = trained
    changes = Changes(rows.ids[:1], {rows.ids[5]: (int(rows.labels[5]) + 1) % 3})
    wanted = apply_changes(model, rows, changes, record=record, **EDITS[how]).model
    other = moved(copy.deepcopy(model))
    with OtherDevice():
        edit = apply_changes(other, rows, changes, record=record, **EDITS[how])
    same(dict(edit.model.named_parameters()), {name: p.detach() for name, p in wanted.named_parameters()})


def test_units_are_edited_as_on_the_cpu(trained: Trained) -> None:
    model, rows, _ = trained
    changes, options = Changes(rows.ids[:2]), {"method": "gif", "damping": 0.1, "weight_decay": 1e-3, "ratio": 0.5}
    wanted = restricted_edit(model, rows, changes, **options).model  # type: ignore[arg-type]
    other = moved(copy.deepcopy(model))
    with OtherDevice():
        found = restricted_edit(other, rows, changes, **options).model  # type: ignore[arg-type]
    same(dict(found.named_parameters()), {name: p.detach() for name, p in wanted.named_parameters()})


def test_models_are_saved_and_loaded_as_on_the_cpu(trained: Trained, tmp_path: Path) -> None:
    """Checkpoints and factors hold values and no device: they are read back to where the model is."""
    model, rows, _ = trained
    other = moved(copy.deepcopy(model))
    with OtherDevice():
        unlearn.save_checkpoint(tmp_path / "model.safetensors", other)
        curvature = fit_curvature(other, rows, fisher="exact")
        curvature.save(tmp_path / "factors")
        read = unlearn.load_curvature(tmp_path / "factors", other, rows).solve(ones(other), damping=0.1)
        same(read, {name: here(part) for name, part in curvature.solve(ones(other), damping=0.1).items()})
    loaded, _ = unlearn.load_checkpoint(tmp_path / "model.safetensors", copy.deepcopy(model))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_certified_heads_take_features_from_there(trained: Trained) -> None:
    model, rows, _ = trained
    options: dict[str, Any] = {"weight_decay": 0.1, "sigma": 1.0, "epsilon": 1.0, "delta": 1e-4, "unit_rows": True}
    wanted = unlearn.train_certified_head(rows, extractor=model, **options).weight
    other = moved(copy.deepcopy(model))
    with OtherDevice():
        found = unlearn.train_certified_head(rows, extractor=other, **options).weight
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_a_users_loop_is_recorded_as_on_the_cpu(trained: Trained, tmp_path: Path) -> None:
    model, rows, _ = trained
    records = {}
    for name, one in {"here": copy.deepcopy(model), "there": moved(copy.deepcopy(model))}.items():
        with OtherDevice():
            optimizer = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9, foreach=False)
            recorder = unlearn.Recorder(one, optimizer, tmp_path / name, snapshots=1)
            for start in range(0, 60, 20):
                positions = torch.arange(start, start + 20)
                inputs, labels = rows.batch(positions)
                place = next(one.parameters()).device
                outputs, labels = one(inputs.to(place)), labels.to(place)
                optimizer.zero_grad()
                nn.functional.cross_entropy(outputs, labels).backward()
                optimizer.step()
                recorder.step([rows.ids[i] for i in positions.tolist()], outputs, labels)
            records[name] = recorder.finish()
    for step in range(4):
        found, wanted = (records[name].snapshot(step) for name in ("there", "here"))
        for part in ("weights", "optimizer"):
            torch.testing.assert_close(getattr(found, part), getattr(wanted, part), rtol=1e-3, atol=1e-5)
    margins = [unlearn.Trajectory.load(tmp_path / name / "trajectory.safetensors").margin for name in records]
    torch.testing.assert_close(*margins, rtol=1e-3, atol=1e-5)


def test_every_public_path_is_covered() -> None:
    """A new name is run there as well, or says here why it need not be."""
    text = Path(__file__).read_text()
    made_of_others = {
        "Changes", "CertifiedHead", "Curvature", "Edit", "Evidence", "MembershipAudit", "Scores", "ScoreShards",
        "Shadows", "TrainSettings", "TrainingRecord", "Trajectory", "Verdict",
    }  # fmt: skip
    rows_alone = {
        "Rows", "add_duplicates", "add_outliers", "add_trigger", "as_rows", "build_model", "corrupt_inputs",
        "estimate_cutoff", "found_curve", "load_data", "mapped_rows", "margin_trajectory", "pair_noise",
        "suggest_labels", "symmetric_noise", "with_trigger",
    }  # fmt: skip
    another_tools_loop = {"LightningRecorder", "TrainerRecorder"}  # on its device; what they note is Recorder's
    missing = [name for name in unlearn.__all__ if not re.search(rf"\b{name}\(", text)]
    assert set(missing) - made_of_others - rows_alone - another_tools_loop == set()


def test_a_device_without_half_precision_is_refused() -> None:
    rows = Rows.from_tensors(torch.ones(2, 2), torch.tensor([0, 1]))
    refused = pytest.raises(InputError, match=r"no autocast for the device 'meta'; leave unlearn.half_precision")
    with OtherDevice(), unlearn.half_precision(torch.bfloat16), refused:
        fit_curvature(moved(nn.Linear(2, 2)), rows)


def test_no_module_names_an_accelerator() -> None:
    """What a device has of its own is asked of the device; texts and doctests may name one."""
    found = []
    for path in sorted((Path(__file__).parents[1] / "unlearn").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            word = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
            if isinstance(word, str) and re.fullmatch(r"(cuda|mps|xpu|hip|hpu|npu)(:\d+)?", word):
                found.append(f"{path.name}:{node.lineno} names {word}")
    assert not found


def test_devices_do_not_mix() -> None:
    """Or nothing here would be tested."""
    with OtherDevice(), pytest.raises(RuntimeError, match="same device"):
        Elsewhere(torch.ones(2)) + torch.ones(2)
    with pytest.raises((RuntimeError, TypeError)):
        Elsewhere(torch.ones(2)).numpy()
