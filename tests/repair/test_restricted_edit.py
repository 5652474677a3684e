"""Restricted edits against dense matrices in float64, each neighbour by its own formula."""

from __future__ import annotations

import json
import shutil
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

from unlearn.curvature import common_units, damped_factors, find_layers, fit_curvature, restricted_step, unit_selection
from unlearn.curvature.restricted_kfac import restricted_kfac_step
from unlearn.data import Rows
from unlearn.errors import ConvergenceError, InputError, RecordError, RowNotFoundError, StaleCurvatureError
from unlearn.models import build_model
from unlearn.pipeline import Run
from unlearn.pipeline.stages import repair_stage
from unlearn.recipe import parse_recipe
from unlearn.repair import Changes, Edit, restricted_edit
from unlearn.repair import restricted_steps as steps_module
from unlearn.repair.objective import EditedObjective
from unlearn.repair.sampled_objective import SampledObjective
from unlearn.tasks import get_task
from unlearn.training import load_checkpoint, train_to_optimum

DECAY, DAMPING = 0.05, 0.3
NUMBERS: dict[str, Any] = {"damping": DAMPING, "weight_decay": DECAY}
TIGHT: dict[str, Any] = {"tolerance": 1e-13, "iterations": 5000}
RESTRICTED = ("gif", "frozen", "projected")
RELABEL, REMOVE = TINY_CHANGES["relabel"], TINY_CHANGES["remove"]


def direction(edit: Edit, model: nn.Module) -> Tensor:
    """The step before its length was cut."""
    assert edit.steps[0].accepted
    return (weights_of(edit.model) - weights_of(model)) / edit.steps[0].length


def selected(model: nn.Module, rows: Rows, changes: Changes, select: str, ratio: float) -> Tensor:
    """Coordinates of the selected units in the flattened `tiny` model, from its own forward and backward pass.

    4 inputs, 5 hidden, 3 classes: units of layer 0 and 2 are the rows of their weight matrices, with the biases.
    """
    changed = rows.only(changes.ids)
    labels = changed.relabelled(changes.relabelled).labels
    inputs, _ = changed.batch(torch.arange(len(changed)))
    hidden = model[0](inputs)
    outputs = model[2](model[1](hidden))
    if select == "outputs":
        seen = [hidden.mean(0).abs(), outputs.mean(0).abs()]
    else:
        loss = nn.functional.cross_entropy(outputs, labels, reduction="sum")
        seen = [g.mean(0).abs() for g in torch.autograd.grad(loss, [hidden, outputs])]
    mask, start = torch.zeros(43, dtype=torch.bool), 0
    for values, width in zip(seen, (4, 5), strict=True):
        count = max(1, int(torch.tensor(ratio * len(values)).ceil()))
        for unit in values.argsort(descending=True)[:count].tolist():
            mask[start + unit * width : start + (unit + 1) * width] = True
            mask[start + len(values) * width + unit] = True
        start += len(values) * (width + 1)
    return mask


def dense_step(H: Tensor, r: Tensor, S: Tensor, method: str) -> Tensor:
    x = torch.zeros_like(r)
    if method == "gif":
        x[S] = torch.linalg.pinv(H[:, S]) @ r
    elif method == "frozen":
        x[S] = torch.linalg.solve(H[S][:, S], r[S])
    elif method == "projected":
        x[S] = torch.linalg.solve(H, r)[S]
    else:
        x = torch.linalg.solve(H, r)
    return x


def damped(model: nn.Module, rows: Rows) -> Tensor:
    return dense_gauss_newton(model, rows) + (DECAY + DAMPING) * torch.eye(43, dtype=torch.float64)


@pytest.mark.parametrize("select", ["outputs", "gradients"])
@pytest.mark.parametrize("method", [*RESTRICTED, "full"])
@pytest.mark.parametrize("kind", TINY_CHANGES)
def test_one_exact_step_is_its_dense_formula(kind: str, method: Any, select: Any) -> None:
    """Rejects H[S, S]^-1 r_S for gif, damping in the least squares, a flipped sign, and units by the old labels."""
    model, rows = tiny()
    changes = TINY_CHANGES[kind]
    options: dict[str, Any] = {} if method == "full" else {"ratio": 0.3, "select": select}
    edit = restricted_edit(model, rows, changes, method=method, **options, **NUMBERS, **TIGHT)
    H, r = damped(model, changes.apply(rows)), right_hand_side(model, rows, changes, DECAY)
    S = selected(model, rows, changes, select, 0.3)
    step = direction(edit, model)
    torch.testing.assert_close(step, dense_step(H, r, S, method), rtol=1e-8, atol=1e-11)
    assert edit.method == f"{method}-exact"
    assert edit.after["changed_loss"] > edit.before["changed_loss"]
    for other in {*RESTRICTED, "full"} - {method}:
        assert (dense_step(H, r, S, other) - step).norm() > 1e-2 * step.norm()


@pytest.mark.parametrize("path", ["exact", "kfac"])
@pytest.mark.parametrize("method", RESTRICTED)
def test_everything_else_is_bit_equal(method: Any, path: Any) -> None:
    model, rows = tiny()
    edit = restricted_edit(model, rows, RELABEL, method=method, path=path, ratio=0.3, steps=3, **NUMBERS)
    assert len(edit.steps) > 1
    S = selected(model, rows, RELABEL, "outputs", 0.3)
    before, after = weights_of(model), weights_of(edit.model)
    assert torch.equal(before[~S], after[~S])
    assert (before[S] != after[S]).all()
    assert f"{int(S.sum())} of 43 weights could move" in edit.notes[0]


def test_the_budget_is_one_unit_at_least() -> None:
    model, rows = tiny()
    edit = restricted_edit(model, rows, REMOVE, **NUMBERS)
    moved = [int((a != b).any(1).sum()) for a, b in zip(_matrices(edit.model), _matrices(model), strict=True)]
    assert moved == [1, 1]  # 5 % of 5 and of 3


def _matrices(model: nn.Module) -> list[Tensor]:
    return [p.detach() for name, p in model.named_parameters() if name.endswith("weight")]


@pytest.mark.parametrize("path", ["exact", "kfac"])
def test_selecting_everything_is_the_full_step(path: Any) -> None:
    model, rows = tiny()
    full = restricted_edit(model, rows, REMOVE, method="full", path=path, **NUMBERS, **TIGHT)
    for method in RESTRICTED:
        edit = restricted_edit(model, rows, REMOVE, method=method, ratio=1.0, path=path, **NUMBERS, **TIGHT)
        torch.testing.assert_close(direction(edit, model), direction(full, model), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("method", [*RESTRICTED, "full"])
@pytest.mark.parametrize("case", ["mlp", "cnn"])
def test_the_closed_form_is_the_exact_path_on_the_same_operator(case: str, method: Any) -> None:
    model, rows = tiny()
    if case == "cnn":
        model = build_model("tinynet", size=4, classes=3, widths=[3, 4]).double()
        rows = Rows.from_tensors(
            torch.randn(12, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
            torch.arange(12) % 3,
        )
    curvature = fit_curvature(model, rows, kind="kfac")
    vector = {name: torch.randn(p.shape, dtype=p.dtype) for name, p in model.named_parameters()}
    layers = find_layers(model, rows).layers
    units = None if method == "full" else common_units(model, rows, layers, ratio=0.4)
    closed = restricted_kfac_step(curvature, vector, units, damping=0.1, method=method)
    selection = None if units is None else unit_selection(layers, units)
    slow = restricted_step(damped_factors(curvature, 0.1), vector, selection, method=method, **TIGHT)
    for name in vector:
        torch.testing.assert_close(closed.step[name], slow.step[name], rtol=1e-7, atol=1e-9)
    assert closed.residual == pytest.approx(slow.residual, rel=1e-6, abs=1e-9)
    assert closed.products == 0


@pytest.mark.parametrize("method", [*RESTRICTED, "full"])
def test_the_kfac_path_takes_that_step(method: Any) -> None:
    model, rows = tiny()
    options: dict[str, Any] = {} if method == "full" else {"ratio": 0.3}
    curvature = fit_curvature(model, RELABEL.apply(rows), kind="kfac")
    edit = restricted_edit(model, rows, RELABEL, method=method, path="kfac", curvature=curvature, **options, **NUMBERS)
    r, right, start = right_hand_side(model, rows, RELABEL, DECAY), {}, 0
    for name, p in model.named_parameters():
        right[name] = r[start : start + p.numel()].reshape(p.shape)
        start += p.numel()
    units = None
    if method != "full":
        asked = rows.only(RELABEL.ids).relabelled(RELABEL.relabelled)
        units = common_units(model, asked, curvature.layers, ratio=0.3)
    found = restricted_kfac_step(curvature, right, units, damping=DECAY + DAMPING, method=method)
    expected = torch.cat([part.reshape(-1) for part in found.step.values()])
    torch.testing.assert_close(direction(edit, model), expected, rtol=1e-9, atol=1e-12)
    assert edit.cost.factors == 0
    assert edit.method == f"{method}-kfac"


@pytest.mark.parametrize("kind", TINY_CHANGES)
def test_the_second_order_step_is_its_dense_formula(kind: str) -> None:
    """theta_0 + s - H^-1 P'' s with true Hessians of the changed rows, and H of the old data."""
    model, rows = tiny()
    changes = TINY_CHANGES[kind]
    edit = restricted_edit(model, rows, changes, method="second-order", **NUMBERS, **TIGHT)
    G, left = dense_gauss_newton(model, rows), len(rows) - len(changes.removed)
    H = G + (DECAY + DAMPING) * torch.eye(43, dtype=torch.float64)
    s = torch.linalg.solve(H, right_hand_side(model, rows, changes, DECAY))
    P = (len(rows) / left - 1) * G
    for row in changes.ids:
        x, y = rows[rows.ids.index(row)]
        P -= hessian(model, x, y) / left
        if row in changes.relabelled:
            P += hessian(model, x, torch.tensor(changes.relabelled[row])) / left
    step = direction(edit, model)
    torch.testing.assert_close(step, s - torch.linalg.solve(H, P @ s), rtol=1e-7, atol=1e-10)
    assert (step - s).norm() > 1e-2 * s.norm()


def hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(weights: Tensor) -> Tensor:
        parts = torch.split(weights, [shape.numel() for shape in shapes])
        state = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, state, (x[None],)), y[None])

    return torch.autograd.functional.hessian(loss, weights_of(model))


def test_the_second_order_term_is_the_second_derivative_along_the_path() -> None:
    """Least squares, whose Hessians are constant: the formula is the expansion of the retrained weights to e^2.

    Rejects the sign that turns s - p / (1 - p) (s - H^-1 H_U s) into s + ...
    """
    draw = torch.Generator().manual_seed(2)
    inputs = torch.randn(20, 3, dtype=torch.float64, generator=draw)
    rows = Rows.from_tensors(inputs, inputs.sum(1) + torch.randn(20, dtype=torch.float64, generator=draw))
    model = nn.Linear(3, 1, bias=False).double()
    model, _ = train_to_optimum(model, rows, weight_decay=0.1, task="regression")
    changes = Changes(removed=tuple(rows.ids[:5]))
    edit = restricted_edit(
        model, rows, changes, method="second-order", task="regression", damping=0.0, weight_decay=0.1, **TIGHT
    )

    def retrained(e: Tensor) -> Tensor:
        """The optimum of L + e P, in closed form."""
        weight = torch.full((20,), 1 / 20, dtype=torch.float64)
        new = torch.cat([torch.zeros(5), torch.full((15,), 1 / 15)]).double()
        w = weight + e * (new - weight)
        X, y = inputs, rows.labels
        return torch.linalg.solve((X.T * w) @ X + 0.1 * torch.eye(3, dtype=torch.float64), (X.T * w) @ y)

    zero = torch.tensor(0.0, dtype=torch.float64)
    first = torch.autograd.functional.jacobian(retrained, zero)
    second = torch.autograd.functional.jacobian(lambda e: torch.func.jacrev(retrained)(e), zero)
    torch.testing.assert_close(direction(edit, model), first + second / 2, rtol=1e-6, atol=1e-9)
    exact = retrained(torch.tensor(1.0, dtype=torch.float64)) - weights_of(model)
    assert (first + second / 2 - exact).norm() < (first - exact).norm()


def test_layers_restrict_further() -> None:
    model, rows = tiny()
    edit = restricted_edit(model, rows, RELABEL, layers="2", ratio=0.3, **NUMBERS, **TIGHT)
    part = slice(25, 43)
    H = damped(model, RELABEL.apply(rows))[part, part]
    r = right_hand_side(model, rows, RELABEL, DECAY)[part]
    S = selected(model, rows, RELABEL, "outputs", 0.3)[part]
    torch.testing.assert_close(direction(edit, model)[part], dense_step(H, r, S, "gif"), rtol=1e-8, atol=1e-11)
    assert torch.equal(edit.model[0].weight, model[0].weight)
    assert edit.layers == ("2",)
    given = fit_curvature(model, RELABEL.apply(rows), kind="kfac")
    kfac = restricted_edit(model, rows, RELABEL, layers="2", path="kfac", curvature=given, **NUMBERS)
    assert torch.equal(kfac.model[0].weight, model[0].weight)
    assert not torch.equal(kfac.model[2].weight, model[2].weight)


def test_steps_go_down_the_objective_from_where_the_last_one_led() -> None:
    model, rows = tiny()
    one, many = (restricted_edit(model, rows, RELABEL, ratio=0.3, steps=k, **NUMBERS) for k in (1, 6))
    assert many.steps[0] == one.steps[0]
    assert all(step.actual < 0 for step in many.steps if step.accepted)
    assert many.steps[1].gradient_norm < many.steps[0].gradient_norm
    assert many.after["changed_loss"] > one.after["changed_loss"]


def test_a_step_that_does_not_lead_down_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny()
    turned = steps_module.ExactSolve.step

    def backwards(self: Any, right: Any, method: Any) -> Any:
        found = turned(self, right, method)
        return type(found)({name: -part for name, part in found.step.items()}, found.products, found.residual)

    monkeypatch.setattr(steps_module.ExactSolve, "step", backwards)
    edit = restricted_edit(model, rows, RELABEL, **NUMBERS)
    assert same_bits(edit.model, model)
    assert not edit.steps[0].accepted
    assert "step 1 was not accepted: the step does not lead down the objective" in edit.notes[-1]


def test_the_cost_counts_every_product() -> None:
    model, rows = tiny()
    edit = restricted_edit(model, rows, RELABEL, ratio=0.3, **NUMBERS)
    n, m = len(rows), 2
    tries = round(1 - torch.tensor(edit.steps[0].length).log2().item())
    # units 3 m, c_i m (and with them reference outputs), gradient 3 m, products 4 n, other reference outputs, tries n
    expected = 7 * m + 4 * n * edit.steps[0].iterations + (n - m) + tries * n
    assert edit.cost.solve == pytest.approx(expected / (3 * n))


@pytest.mark.parametrize("kind", TINY_CHANGES)
def test_the_objective_on_all_rows_is_the_edits(kind: str) -> None:
    model, rows = tiny()
    options = (model, rows, TINY_CHANGES[kind], get_task("classification"), [n for n, _ in model.named_parameters()])
    whole, strata = EditedObjective(*options, DECAY, DAMPING), SampledObjective(*options, DECAY, DAMPING)
    weights = {name: value + 0.1 * torch.randn_like(value) for name, value in whole.start.items()}
    assert strata.value(weights) == pytest.approx(whole.value(weights), rel=1e-12)
    assert not strata.sampled


@pytest.mark.parametrize("kind", TINY_CHANGES)
def test_the_sampled_objective_is_right_on_average(kind: str) -> None:
    """Every untouched row as often as any other: rejects a weight of 1 / n, and relabelled rows in it."""
    model, rows = tiny()
    options = (model, rows, TINY_CHANGES[kind], get_task("classification"), [n for n, _ in model.named_parameters()])
    strata = SampledObjective(*options, DECAY, DAMPING, untouched=1)
    weights = {name: value + 0.1 for name, value in strata.start.items()}
    found: dict[tuple[str, ...], float] = {}
    for seed in range(200):
        strata.draw(seed)
        found[strata.rows.ids] = strata.value(weights)
    assert strata.sampled
    assert {row for (row,) in found} == set(rows.ids) - set(TINY_CHANGES[kind].ids)
    mean = sum(found.values()) / len(found)
    assert mean == pytest.approx(EditedObjective(*options, DECAY, DAMPING).value(weights), rel=1e-12)


def test_every_step_draws_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny()
    seeds: list[int] = []
    draw = SampledObjective.draw
    monkeypatch.setattr(SampledObjective, "draw", lambda self, seed: (seeds.append(seed), draw(self, seed))[1])
    restricted_edit(model, rows, RELABEL, ratio=0.3, steps=3, sample=4, **NUMBERS)
    assert seeds == [0, 1, 2]


def test_the_horizon_of_a_record_is_the_damping(tmp_path: Any) -> None:
    model, rows, record = training(tmp_path)
    changes = Changes(relabelled={row: (int(rows.labels[i]) + 1) % 10 for i, row in enumerate(rows.ids[:5])})
    edit = restricted_edit(model, rows, changes, record=record, path="kfac")
    assert edit.steps[0].damping == record.damping()
    assert edit.steps[0].weight_decay == record.weight_decay
    assert edit.cost.factors == 2  # all rows


def test_adams_metric_is_for_the_exact_path(tmp_path: Any) -> None:
    model, rows, record = training(tmp_path, "adam")
    changes = Changes(removed=rows.ids[:5])
    edit = restricted_edit(model, rows, changes, record=record, layers="3")
    assert edit.steps[0].damping > 0
    with pytest.raises(InputError, match="the damping of Adam is a metric and Kronecker factors take a number"):
        restricted_edit(model, rows, changes, record=record, path="kfac")


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "method": ({"method": "gift"}, InputError, "unknown method 'gift'; did you mean 'gif'"),
    "path": ({"path": "kfca"}, InputError, "unknown path 'kfca'; did you mean 'kfac'"),
    "select": ({"select": "output"}, InputError, "unknown select 'output'; did you mean 'outputs'"),
    "ratio": ({"ratio": 0.0}, InputError, "ratio is 0.0; give a share"),
    "ratio of all": ({"method": "full", "ratio": 0.1}, InputError, "method 'full' moves all weights; leave out ratio"),
    "select of all": ({"method": "second-order", "select": "outputs"}, InputError, "'second-order' moves all weights"),
    "steps": ({"steps": 0}, InputError, "steps is 0; give a number of at least 1"),
    "length": ({"length": 0.0}, InputError, "length is 0.0; give a finite factor above 0"),
    "sample": ({"sample": 0}, InputError, "sample is 0; give a number of rows"),
    "damping": ({"damping": -1.0}, InputError, "damping is -1.0; give a finite number"),
    "no damping": ({"damping": "horizon"}, RecordError, "no training record and no damping"),
    "nothing": ({"changes": Changes()}, InputError, "no row is changed"),
    "same label": ({"changes": Changes(relabelled={"row-3": 0})}, InputError, "carry their new label already"),
    "no such row": ({"changes": Changes(removed=("row-99",))}, RowNotFoundError, "not in data: 'row-99'"),
    "no such layer": ({"layers": "7"}, InputError, "layers pattern '7' matches no trained parameter"),
    "no convergence": ({"iterations": 1, "tolerance": 1e-9}, ConvergenceError, "LSMR stopped after 1 iterations"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case: str) -> None:
    options, error, message = BAD[case]
    model, rows = tiny()
    before = weights_of(model).clone()
    with pytest.raises(error, match=message) as found:
        restricted_edit(model, rows, **{"changes": RELABEL, **NUMBERS, **options})
    assert "\n" not in str(found.value)
    assert torch.equal(weights_of(model), before)


def test_bad_curvature() -> None:
    model, rows = tiny()
    curvature = fit_curvature(model, rows, kind="kfac")
    with pytest.raises(InputError, match="leave out curvature=, or take path='kfac'"):
        restricted_edit(model, rows, RELABEL, curvature=curvature, **NUMBERS)
    with pytest.raises(StaleCurvatureError, match="fit it on this model"):
        restricted_edit(tiny("linear")[0], rows, RELABEL, path="kfac", curvature=curvature, **NUMBERS)
    diagonal = fit_curvature(model, rows, kind="diagonal")
    with pytest.raises(InputError, match="lacks; fit kind='ekfac' or 'kfac'"):
        restricted_edit(model, rows, RELABEL, path="kfac", curvature=diagonal, **NUMBERS)
    units = {"0": torch.tensor([0])}
    for options, message in (
        ({"method": "gift"}, "did you mean 'gif'"),
        ({"method": "full"}, "'full' freezes nothing; leave out the units"),
        ({"method": "gif", "units": None}, "'gif' moves units; give them"),
    ):
        with pytest.raises(InputError, match=message):
            restricted_kfac_step(curvature, {}, **{"units": units, "damping": 0.1, **options})


def test_a_recipe_and_a_command_edit_units(tiny_run: Path, tmp_path: Path, unlearn: Any) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    words = {"budget": 0.0, "method": "gif", "ratio": 0.1, "select": "gradients", "steps": 2}
    recipe = run.recipe.model_copy(update={"repair": run.recipe.repair.model_copy(update=words)})
    repair_stage(Run(run.folder, recipe))
    assert moved_units(run) == [4, 1]  # a tenth of 32 and of 10
    row = run.data.ids[0]
    base = ("repair", "remove", run.folder, row, "--replace")
    code, out, err = unlearn(*base, "--method", "gif", "--ratio", "0.05", "--json")
    assert code == 0, err
    assert json.loads(out)["method"] == "gif-kfac"
    assert moved_units(run) == [2, 1]
    for more, message in (
        (("--ratio", "0.1"), "belong to --method"),
        (("--method", "gif", "--budget", "2"), "asks for a replay; leave it out"),
        (("--method", "full", "--ratio", "0.1"), "method 'full' moves all weights"),
    ):
        code, _, err = unlearn(*base, *more)
        assert code == 2
        assert message in err


def moved_units(run: Run) -> list[int]:
    edited, _ = load_checkpoint(run.folder / "edited.safetensors", run.build())
    pairs = zip(edited.named_parameters(), run.original[0].named_parameters(), strict=True)
    return [int((a != b).any(1).sum()) for (name, a), (_, b) in pairs if name.endswith("weight")]


def test_a_recipe_with_a_trigger_is_relabelled_to_the_truth(tmp_path: Path) -> None:
    text = """
name = "trigger"
data.source = "digits"
data.corruption = { kind = "trigger", rate = 0.1, label = 4, strength = 0.5 }
model.name = "tinynet"
model.options = { size = 8, widths = [4] }
train.epochs = 1
repair.action = "true-labels"
"""
    run = Run.create(tmp_path / "run", parse_recipe(text))
    assert run.corrupted is not None
    assert run.triggered_test is not None
    assert run.stated is not None
    truth = dict(zip(run.data.ids, run.data.truth.tolist(), strict=True))  # type: ignore[union-attr]
    assert run.stated.relabelled == {row: truth[row] for row in run.corrupted.ids if truth[row] != 4}
    marked = run.triggered_test.batch(torch.arange(3))[0] - run.test.batch(torch.arange(3))[0]
    assert marked.flatten(1).max(1).values.tolist() == [0.5] * 3
    assert torch.equal(run.triggered_test.labels, run.test.labels)
    with pytest.raises(InputError, match="the true labels of digits are not known; action 'true-labels' needs"):
        Run.create(tmp_path / "plain", parse_recipe("\n".join(text.splitlines()[:3] + text.splitlines()[4:])))
