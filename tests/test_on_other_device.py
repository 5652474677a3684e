"""Every public path with a model on another device: it runs, mixes no devices, and gives what the CPU gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from other_device import Elsewhere, OtherDevice, moved
from torch import Tensor, nn

import unlearn
from unlearn.curvature import conjugate_gradient, fit_curvature, gauss_newton, loss_gradient
from unlearn.data import Rows
from unlearn.predict import predict
from unlearn.repair import Changes, apply_changes, restricted_edit
from unlearn.training import TrainingRecord, TrainSettings, train

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
}
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


def test_devices_do_not_mix() -> None:
    """Or nothing here would be tested."""
    with OtherDevice(), pytest.raises(RuntimeError, match="same device"):
        Elsewhere(torch.ones(2)) + torch.ones(2)
    with pytest.raises((RuntimeError, TypeError)):
        Elsewhere(torch.ones(2)).numpy()
