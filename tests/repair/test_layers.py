"""``layers=``: Newton steps in some layers' weights alone, all others bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from repair_cases import (
    TINY_CHANGES,
    dense_gauss_newton,
    right_hand_side,
    same_bits,
    tiny,
    training,
    weights_of,
)
from torch import Tensor, nn

from unlearn.checkpoint import read_metadata
from unlearn.cli import main
from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.errors import InputError, RecipeError
from unlearn.pipeline import Run
from unlearn.pipeline.stages import repair_stage
from unlearn.recipe import parse_recipe
from unlearn.repair import Changes, Edit, apply_changes
from unlearn.repair import newton_edit as newton_module
from unlearn.repair.chosen_layers import chosen_parameters
from unlearn.training import TrainingRecord, load_checkpoint, train_to_optimum

DECAY, DAMPING = 0.05, 0.3
# positions of the layers' weights in the flattened model of `tiny`: 4 inputs, 5 hidden, 3 classes
PARTS = {"0": slice(0, 25), "2": slice(25, 43)}
REMOVE = TINY_CHANGES["remove"]


@pytest.mark.parametrize("layers", [["0", "2"], ["*"], ["*.weight", "*.bias"], "[02]"])
@pytest.mark.parametrize("given", [False, True])
def test_all_layers_are_no_restriction(layers: Any, given: bool) -> None:
    model, rows = tiny()
    options: dict[str, Any] = {"damping": DAMPING, "weight_decay": DECAY}
    if given:
        options["curvature"] = fit_curvature(model, rows)
    plain = apply_changes(model, rows, TINY_CHANGES["mixed"], **options)
    edit = apply_changes(model, rows, TINY_CHANGES["mixed"], layers=layers, **options)
    assert same_bits(plain.model, edit.model)
    assert not same_bits(model, edit.model)
    assert edit.steps == plain.steps


@pytest.mark.parametrize("layer", PARTS)
@pytest.mark.parametrize("kind", TINY_CHANGES)
def test_one_layer_is_newtons_step_in_its_weights(layer: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """(G[L, L] + w + d)^-1 b[L]: the block of the matrix, not the rows L of the full solution."""
    monkeypatch.setattr(newton_module, "ITERATIONS", 200)
    monkeypatch.setattr(newton_module, "newton_steps", _to_the_end)
    model, rows = tiny()
    part = PARTS[layer]
    edit = apply_changes(model, rows, TINY_CHANGES[kind], damping=DAMPING, weight_decay=DECAY, layers=[layer])
    full = dense_gauss_newton(model, TINY_CHANGES[kind].apply(rows)) + (DECAY + DAMPING) * torch.eye(
        43, dtype=torch.float64
    )
    right = right_hand_side(model, rows, TINY_CHANGES[kind], DECAY)
    step = (weights_of(edit.model) - weights_of(model)) / edit.steps[0].length
    torch.testing.assert_close(step[part], torch.linalg.solve(full[part, part], right[part]), rtol=1e-9, atol=1e-12)
    assert (torch.linalg.solve(full, right)[part] - step[part]).norm() > 0.01 * step[part].norm()
    others = {name for name in model.state_dict() if not name.startswith(layer)}
    assert all(torch.equal(model.state_dict()[name], edit.model.state_dict()[name]) for name in others)


def _to_the_end(*args: Any, **options: Any) -> Any:
    from unlearn.repair.newton import newton_steps

    return newton_steps(*args, **{**options, "tolerance": 1e-13})


def test_head_at_its_optimum_is_retrained_on_fixed_features() -> None:
    """At the head's own optimum with damping 0, an edit of the head is L-BFGS on the features without the rows."""
    body, rows = _body_and_rows()
    model, record = _head_optimum(body, rows)
    changes = Changes(removed=tuple(rows.ids[:7]), relabelled={rows.ids[9]: 1 - int(rows.labels[9])})
    edit = apply_changes(model, rows, changes, record=record, damping=0.0, layers="2")
    retrained, _ = _head_optimum(body, changes.apply(rows))
    torch.testing.assert_close(weights_of(edit.model), weights_of(retrained), rtol=0, atol=1e-8)
    assert (weights_of(edit.model) - weights_of(model)).norm() > 0.01
    assert torch.equal(edit.model[0].weight, model[0].weight)
    assert len(edit.steps) > 1


def _body_and_rows() -> tuple[nn.Module, Rows]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        body = nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double()
        inputs = torch.randn(60, 4, dtype=torch.float64)
        labels = (inputs[:, 0] + 0.8 * torch.randn(60) > 0).long()
    return body, Rows.from_tensors(inputs, labels, classes=2)


def _head_optimum(body: nn.Module, rows: Rows) -> tuple[nn.Module, TrainingRecord]:
    inputs, labels = rows.batch(torch.arange(len(rows)))
    features = Rows.from_tensors(body(inputs).detach(), labels, ids=rows.ids, classes=2)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        head = nn.Linear(6, 2).double()
    head, _ = train_to_optimum(head, features, weight_decay=0.01)
    return nn.Sequential(*body, head), TrainingRecord("lbfgs", 1.0, 1, weight_decay=0.01)


def test_adams_metric_is_that_of_the_layers_alone(tmp_path: Any) -> None:
    model, rows, record = training(tmp_path, "adam")
    changes = Changes(removed=rows.ids[:5])
    edit = apply_changes(model, rows, changes, record=record, budget=0, layers="3")
    moments = record.snapshot(record.steps).optimizer
    correction = 1 - record.betas[1] ** record.steps
    metric = [((moments[f"exp_avg_sq/3.{p}"] / correction).sqrt() + record.eps) for p in ("weight", "bias")]
    expected = torch.cat([part.flatten() for part in metric]).double().mean() / record.horizon()
    assert edit.steps[0].damping == pytest.approx(float(expected), rel=1e-5)


def test_a_curvature_of_all_layers_serves_for_some() -> None:
    """Blocks of other layers are left out; a preconditioner changes the iterations, not the solution."""
    model, rows = tiny()
    options: dict[str, Any] = {"damping": DAMPING, "weight_decay": DECAY, "layers": ["2"]}
    given = apply_changes(model, rows, REMOVE, curvature=fit_curvature(model, REMOVE.apply(rows)), **options)
    fitted = apply_changes(model, rows, REMOVE, **options)
    assert given.cost.factors == 0 < fitted.cost.factors
    torch.testing.assert_close(weights_of(given.model), weights_of(fitted.model), rtol=1e-12, atol=0)
    assert torch.equal(given.model[0].weight, model[0].weight)


def test_an_edit_says_which_layers() -> None:
    model, rows = tiny()
    edit = apply_changes(model, rows, REMOVE, damping=DAMPING, weight_decay=DECAY, layers="2")
    assert edit.layers == ("2",)
    assert edit.provenance()["layers"] == ["2"]
    assert "only layers '2' were edited; all other weights are as they were" in edit.notes
    plain = apply_changes(model, rows, REMOVE, damping=DAMPING, weight_decay=DECAY)
    assert plain.layers is None
    assert plain.to_dict()["layers"] is None
    assert plain.notes == ()


def test_layers_less_skipped() -> None:
    model, rows = tiny()
    options: dict[str, Any] = {"damping": DAMPING, "weight_decay": DECAY}
    edit = apply_changes(model, rows, REMOVE, layers=["2", "0.weight"], skip="2.bias", **options)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, edit.model.get_parameter(name))}
    assert moved == {"0.weight", "2.weight"}


def test_names_that_are_patterns_themselves() -> None:
    """A parameter to leave out is left out by its name, not by what its name means as a pattern."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("a[bc]", nn.Linear(4, 3, dtype=torch.float64))
            self.add_module("ab", nn.Linear(3, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.ab(torch.tanh(self.get_submodule("a[bc]")(x)))

    model, (_, rows) = Odd(), tiny()
    edit = apply_changes(model, rows, REMOVE, damping=DAMPING, weight_decay=DECAY, layers="ab")
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, edit.model.get_parameter(name))}
    assert moved == {"ab.weight", "ab.bias"}


def test_tied_weights_are_chosen_by_any_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert chosen_parameters(model, "2") == ["0.weight", "2.bias"]


def edited(**options: Any) -> Edit:
    model, rows = tiny()
    return apply_changes(model, rows, REMOVE, damping=DAMPING, weight_decay=DECAY, **options)


def edited_by_a_torn_block() -> Edit:
    model, rows = tiny()
    return edited(layers="2.weight", curvature=fit_curvature(model, rows))


def edited_by_less_curvature() -> Edit:
    model, rows = tiny()
    return edited(layers="2", curvature=fit_curvature(model, rows, skip="2"))


def edited_frozen() -> Edit:
    model, rows = tiny()
    model[2].requires_grad_(False)
    return apply_changes(model, rows, REMOVE, damping=DAMPING, weight_decay=DECAY, layers=["0", "2"])


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no pattern": (lambda: edited(layers=[]), "layers has no pattern; name at least one"),
    "nothing matched": (lambda: edited(layers=["2", "head"]), "layers pattern 'head' matches no trained parameter"),
    "a letter of a string": (lambda: edited(layers="02"), "layers pattern '02' matches no trained parameter"),
    "a module without weights": (lambda: edited(layers="1"), "layers pattern '1' matches no trained parameter"),
    "frozen": (edited_frozen, "layers pattern '2' matches no trained parameter"),
    "all skipped again": (lambda: edited(layers="2", skip="2"), "no parameter is left to cover"),
    "part of a block": (edited_by_a_torn_block, "leaves out '2.bias', which share a curvature block"),
    "not covered": (edited_by_less_curvature, "does not cover '2.weight', '2.bias'; fit it with these layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as found:
        make()
    assert "\n" not in str(found.value)


def test_a_replay_is_refused(tmp_path: Any) -> None:
    model, rows, record = training(tmp_path)
    changes = Changes(removed=rows.ids[:5])
    with pytest.raises(InputError, match="a replay moves all of them; pass budget=0"):
        apply_changes(model, rows, changes, record=record, budget=2, layers="3")
    edit = apply_changes(model, rows, changes, record=record, budget=0, layers="3")
    assert edit.start_step is None
    assert torch.equal(edit.model[1].weight, model[1].weight)
    assert not torch.equal(edit.model[3].weight, model[3].weight)


RECIPE = 'name = "x"\n[data]\nsource = "digits"\n[model]\nname = "mlp"\n[repair]\n'
RECIPES = {
    "with a replay": ('layers = ["3"]', r"'repair' is .*layers edits some layers only.*state budget = 0 with it"),
    "no pattern": ("layers = []\nbudget = 0", r"'repair.layers' is \[\]"),
    "a word": ('layers = "3"\nbudget = 0', "'repair.layers' is '3'"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes_that_are_refused(case: str) -> None:
    text, message = RECIPES[case]
    with pytest.raises(RecipeError, match=message) as found:
        parse_recipe(RECIPE + text)
    assert "\n" not in str(found.value)


def test_a_recipe_and_a_command_edit_layers(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    last = [name for name, _ in run.original[0].named_parameters()][-1].partition(".")[0]
    section = run.recipe.repair.model_copy(update={"budget": 0.0, "layers": [last]})
    repair_stage(Run(run.folder, run.recipe.model_copy(update={"repair": section})))
    _check_moved(run, last)
    for budget, code in ((0, 0), (3, 2)):
        row = run.data.ids[0]
        words = ["repair", "remove", run.folder, row, "--replace", "--budget", budget, "--layers", last, "--json"]
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        assert int(caught.value.code or 0) == code
        out, err = capsys.readouterr()
        if code:
            assert "a replay moves all of them; pass budget=0 with it" in err
        else:
            assert json.loads(out)["layers"] == [last]
            _check_moved(run, last)


def _check_moved(run: Run, layer: str) -> None:
    path = run.folder / "edited.safetensors"
    assert read_metadata(path)["edit"]["layers"] == [layer]
    edited, _ = load_checkpoint(path, run.build())
    original = run.original[0].state_dict()
    moved = {name.partition(".")[0] for name, w in edited.state_dict().items() if not torch.equal(w, original[name])}
    assert moved == {layer}
