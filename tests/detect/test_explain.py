import pytest
import torch
from detect_cases import gradients, model_of, rows_of
from torch import nn

from unlearn.curvature import dot, fit_curvature
from unlearn.data import Rows
from unlearn.detect.explain import explain
from unlearn.errors import InputError
from unlearn.predict import predict

DAMPING = {"damping": 0.03, "weight_decay": 0.02}


def dense(model, rows, queries, curvature):
    """Return - g_q^T (G + w + d)^-1 g_z from one backward pass for each row, (queries, rows)."""
    solved = [curvature.solve(g, damping=0.05) for g in gradients(model, rows)]
    return [[-float(dot(q, z)) for z in solved] for q in gradients(model, queries)]


@pytest.mark.parametrize("case", ["mlp", "cnn"])
def test_lists_are_the_dense_influence_in_order(case):
    # rejects the opposite sign, lists swapped or reversed, and values divided by the number of queries
    model, rows, queries = model_of(case), rows_of(), rows_of(3, seed=2)
    curvature = fit_curvature(model, rows)
    found = explain(model, rows, queries, top=4, curvature=curvature, **DAMPING)
    assert [one.query for one in found] == list(queries.ids)
    for one, values in zip(found, dense(model, rows, queries, curvature), strict=True):
        order = sorted(range(len(rows)), key=lambda i: values[i])
        helpful, harmful = [i for i in order if values[i] < 0][:4], [i for i in order[::-1] if values[i] > 0][:4]
        assert [row.id for row in one.helpful] == [rows.ids[i] for i in helpful]
        assert [row.id for row in one.harmful] == [rows.ids[i] for i in harmful]
        for row, i in zip([*one.helpful, *one.harmful], [*helpful, *harmful], strict=True):
            assert row.influence == pytest.approx(values[i], rel=1e-9, abs=1e-12)
            assert row.loss_change == pytest.approx(-values[i] / 11, rel=1e-9, abs=1e-12)
            assert row.given == int(rows.labels[i])
        assert one.rows == 11
        assert one.itself is None
        assert one.options["damping"] == 0.03


def test_loss_change_is_what_leaving_the_row_out_does():
    # least squares, where the step on removal is exactly G^-1 g_z / (n (1 - h_z)): rejects the sign and any factor
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=draw, dtype=torch.float64)
    y = x[:, :1] + torch.randn(20, 1, generator=draw, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    query = (x[:1] + 1, y[:1] - 1)
    curvature = fit_curvature(model, (x, y), task="regression", kind="kfac", fisher="exact")
    (one,) = explain(model, (x, y), query, top=20, curvature=curvature, damping=0.0, task="regression")
    h = (x * torch.linalg.solve(x.T @ x, x.T).T).sum(1)
    residual = float(model(query[0]).detach() - query[1])
    assert one.loss == pytest.approx(0.5 * residual**2)
    assert one.probability is None
    assert one.predicted == pytest.approx((float(model(query[0]).detach()),))
    assert len(one.helpful) + len(one.harmful) == 20
    for row in (*one.helpful, *one.harmful):
        keep = torch.arange(20) != int(row.id)
        change = torch.linalg.lstsq(x[keep], y[keep]).solution - model.weight.detach().T
        assert row.loss_change / (1 - float(h[int(row.id)])) == pytest.approx(residual * float(query[0] @ change))


def test_a_training_row_is_not_in_its_own_lists():
    model, rows = model_of("mlp"), rows_of()
    curvature = fit_curvature(model, rows)
    (one,) = explain(model, rows, rows.only(["1-4"]), top=11, curvature=curvature, **DAMPING)
    assert one.itself.id == "1-4"
    assert one.itself.influence == pytest.approx(dense(model, rows, rows, curvature)[4][4])
    assert one.itself.influence < 0
    listed = [row.id for row in (*one.helpful, *one.harmful)]
    assert sorted(listed) == sorted(set(rows.ids) - {"1-4"})


@pytest.mark.parametrize("changed", ["input", "label"])
def test_the_same_id_alone_is_not_the_same_row(changed):
    # rows without ids of their own are numbered, in training and test data alike
    model, rows = model_of("mlp"), rows_of()
    x, y = rows.batch(torch.tensor([4]))
    other = (x + 1, y) if changed == "input" else (x, (y + 1) % 3)
    (one,) = explain(model, rows, Rows.from_tensors(*other, ids=["1-4"], classes=3), top=11)
    assert one.itself is None
    assert "1-4" in [row.id for row in (*one.helpful, *one.harmful)]


def test_label_predicted_explains_the_loss_at_the_predicted_class():
    model, rows = model_of("mlp"), rows_of()
    queries = rows_of(6, seed=2)
    predicted = predict(model, queries).argmax(1)
    assert (predicted != queries.labels).any()
    at = queries.relabelled(dict(zip(queries.ids, predicted.tolist(), strict=True)))
    curvature = fit_curvature(model, rows)
    found = explain(model, rows, queries, label="predicted", curvature=curvature)
    for one, same in zip(found, explain(model, rows, at, curvature=curvature), strict=True):
        assert (one.helpful, one.harmful, one.loss) == (same.helpful, same.harmful, same.loss)
        assert one.label == one.predicted == same.given
        assert one.loss == pytest.approx(-float(torch.tensor(one.probability).log()), rel=1e-6)
    assert [one.given for one in found] == queries.labels.tolist()


def test_a_predicted_class_that_no_query_carries():
    model, x = nn.Linear(3, 3, bias=False), torch.eye(3)
    model.weight.data = torch.eye(3)
    query = (x[2:], torch.tensor([0]))  # a pair of tensors with one class
    (one,) = explain(model, (x, torch.tensor([0, 1, 2])), query, label="predicted")
    assert (one.given, one.label, one.predicted) == (0, 2, 2)
    assert one.helpful[0].id == "2"


def test_truth_and_suggestions_stand_beside_the_rows():
    model, rows = model_of("mlp"), rows_of()
    known = rows.with_truth((rows.labels + 1) % 3)
    (one,) = explain(model, known, rows_of(1, seed=2), top=11, suggestions={"1-3": 2})
    for row in (*one.helpful, *one.harmful):
        assert row.truth == (row.given + 1) % 3
        assert row.suggested == (2 if row.id == "1-3" else None)
    (bare,) = explain(model, rows, rows_of(1, seed=2), top=11)
    assert {(row.truth, row.suggested) for row in bare.helpful} == {(None, None)}


def test_rows_without_influence_are_in_no_list_and_equal_ones_in_order():
    model = nn.Linear(2, 2, bias=False)
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    data = Rows.from_tensors(x, torch.tensor([0, 1, 1, 1]), ids=["a", "b", "c", "d"])
    (one,) = explain(model, data, (x[:1], torch.tensor([0])))
    assert [row.id for row in one.helpful] == ["a"]
    assert [row.id for row in one.harmful] == ["b", "d"]


def test_refusals():
    model, rows = model_of("mlp"), rows_of()
    with pytest.raises(InputError, match="top is 0; give a number of rows of at least 1"):
        explain(model, rows, rows, top=0)
    with pytest.raises(InputError, match="unknown label 'predict'; did you mean 'predicted'"):
        explain(model, rows, rows, label="predict")
    numbers = (torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(InputError, match="numbers for labels, no predicted class; pass label='given'"):
        explain(nn.Linear(1, 1), numbers, numbers, label="predicted", task="regression")
