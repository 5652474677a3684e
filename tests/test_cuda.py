"""On a real GPU: what is fitted, scored, edited and replayed there is what the CPU gives, to a relative 1e-3.

``tests/test_on_other_device.py`` runs every public path on a pretended device; this is what only a real one can show:
kernels, its random numbers, half precision.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unlearn
from unlearn.curvature import fit_curvature, gauss_newton
from unlearn.data import Rows
from unlearn.repair import Changes, apply_changes
from unlearn.training import TrainingRecord, TrainSettings, replay, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is false: no GPU here")
DEVICE = "cuda"
Trained = tuple[nn.Module, Rows, TrainingRecord]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 3)
        )
        rows = Rows.from_tensors(torch.randn(60, 1, 8, 8), torch.randint(3, (60,)))
    settings = TrainSettings(epochs=4, batch_size=20, lr=0.05)
    model, record = train(start, rows, settings, folder=tmp_path_factory.mktemp("run"), snapshot_epochs=range(5))
    return model, rows, record


@pytest.fixture(autouse=True)
def _whole_float32() -> Any:
    """TensorFloat-32 rounds to ten bits; what is compared here is float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def there(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(DEVICE)


def near(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, part in wanted.items():
        assert found[name].device.type == DEVICE
        torch.testing.assert_close(found[name].cpu(), part, rtol=1e-3, atol=1e-5, msg=name)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def test_a_fit_and_exact_products(trained: Trained) -> None:
    model, rows, _ = trained
    other = there(model)
    v, w = ({name: torch.ones_like(p) for name, p in m.named_parameters()} for m in (model, other))
    fits = [fit_curvature(m, rows, fisher="exact") for m in (model, other)]
    near(fits[1].solve(w, damping=0.1), fits[0].solve(v, damping=0.1))
    near(gauss_newton(other, rows).matvec(w), gauss_newton(model, rows).matvec(v))


@pytest.mark.parametrize("score", [unlearn.self_influence, unlearn.gif_scores])
def test_scores(trained: Trained, score: Any) -> None:
    model, rows, _ = trained
    wanted, found = (
        score(m, rows, curvature=fit_curvature(m, rows, fisher="exact")).values for m in (model, there(model))
    )
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(wanted), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("options", [{"budget": 0, "method": "newton"}, {"budget": 0}, {"budget": 1}])
def test_edits(trained: Trained, options: dict[str, Any]) -> None:
    model, rows, record = trained
    changes = Changes(("0",), {"5": (int(rows.labels[5]) + 1) % 3})
    wanted, found = (apply_changes(m, rows, changes, record=record, **options).model for m in (model, there(model)))
    near(weights_of(found), weights_of(wanted))


def test_a_replay_and_what_it_leaves_of_the_random_numbers(trained: Trained) -> None:
    model, rows, record = trained
    other = there(model)
    state = torch.cuda.get_rng_state()
    near(weights_of(replay(other, rows, record, start=6)[0]), weights_of(replay(model, rows, record, start=6)[0]))
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision(trained: Trained, dtype: torch.dtype) -> None:
    model, rows, _ = trained
    other = there(model)
    wanted = unlearn.self_influence(other, rows).values
    with unlearn.half_precision(dtype):
        found = unlearn.self_influence(other, rows)
    assert found.options["precision"] == str(dtype)
    error = torch.from_numpy(found.values - wanted).norm() / torch.from_numpy(wanted).norm()
    assert 0 < error < (0.05 if dtype == torch.bfloat16 else 0.01)
