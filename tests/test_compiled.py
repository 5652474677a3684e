"""Compiled models, and models whose images are stored channels-last, are fitted, scored and edited like plain ones."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unlearn
from unlearn.curvature import fit_curvature, gauss_newton, loss_gradient
from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.predict import predict
from unlearn.repair import Changes, apply_changes, restricted_edit


def plain() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)
        )


ROWS = Rows.from_tensors(torch.randn(20, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3)


def whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend=never)  # type: ignore[return-value]


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend=never)
    return model


def parts(model: nn.Module) -> nn.Module:
    model[0] = torch.compile(model[0], backend=never)  # type: ignore[index, operator]
    return model


def never(*_: Any) -> Any:
    """A compiler: it may not be asked, since a compiled pass hides what it does with its parameters."""
    raise AssertionError("compiled")


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": whole,
    "compiled in place": in_place,
    "a compiled part": parts,
    "channels-last": lambda model: model.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
}


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


def plain_names(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("_orig_mod.", ""): part for name, part in found.items()}


@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_those_of_the_plain_model(form: str) -> None:
    """Rejects a fit that sees no layers in a compiled pass, and factors in the order of storage."""
    model, other = plain(), FORMS[form](plain())
    names = [name for name, _ in other.named_parameters()]
    curvature, found = fit_curvature(model, ROWS), fit_curvature(other, ROWS)
    assert [layer.kind for layer in found.layers] == ["Conv2d", "Conv2d", "Linear"]
    v = {name: torch.ones_like(p) for name, p in other.named_parameters()}
    for one, wanted in (
        (found.solve(v, damping=0.1), curvature.solve(plain_names(v), damping=0.1)),
        (gauss_newton(other, ROWS).matvec(v), gauss_newton(model, ROWS).matvec(plain_names(v))),
        (loss_gradient(other, ROWS), loss_gradient(model, ROWS)),
    ):
        assert list(one) == names
        torch.testing.assert_close(plain_names(one), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(predict(other, ROWS), predict(model, ROWS))
    for score in (unlearn.self_influence, unlearn.gif_scores):
        pair = [score(m, ROWS, weight_decay=0.01).values for m in (other, model)]  # type: ignore[operator]
        torch.testing.assert_close(*map(torch.from_numpy, pair), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_edits_are_those_of_the_plain_model(form: str) -> None:
    model, other = plain(), FORMS[form](plain())
    before = copy.deepcopy(other.state_dict())
    options: dict[str, Any] = {"damping": 0.1, "weight_decay": 0.01}
    for edit, atol in ((apply_changes, 1e-6), (restricted_edit, 1e-3)):  # whose solve stops sooner or later by rounding
        wanted, found = (edit(m, ROWS, Changes(("0", "1")), **options) for m in (model, other))
        assert list(found.model.state_dict()) == list(before)
        torch.testing.assert_close(
            plain_names(found.model.state_dict()), wanted.model.state_dict(), rtol=1e-4, atol=atol
        )
        torch.testing.assert_close(predict(found.model, ROWS), predict(wanted.model, ROWS), rtol=1e-4, atol=10 * atol)
    assert all(torch.equal(other.state_dict()[name], part) for name, part in before.items())


def test_passes_of_a_plain_model_leave_none_alive() -> None:
    """Rejects a change of the compiler's stance at each pass: torch 2.6 takes references to None with each of them."""
    import torch._dynamo

    assert torch._dynamo.is_compiling() is False  # loaded, as an optimizer loads it
    model = plain()
    before = sys.getrefcount(None)
    for _ in range(300):
        predict(model, ROWS)
    assert sys.getrefcount(None) > before - 300


def test_a_record_of_the_plain_model_is_told_from_another_ones(tmp_path: Any) -> None:
    settings = unlearn.TrainSettings(epochs=3, batch_size=10, lr=0.01)
    model, record = unlearn.train(plain(), ROWS, settings, folder=tmp_path, snapshot_epochs=range(4))
    with pytest.raises(RecordError, match=r"of this model before torch.compile; pass the plain model, its _orig_mod"):
        apply_changes(whole(model), ROWS, Changes(("0",)), record=record)
