import pytest
import torch
from detect_cases import model_of, rows_of

from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.detect import Scores, influence, top_influence
from unlearn.detect.influence import InfluencePair
from unlearn.errors import InputError, StaleCurvatureError


def both_ends(matrix, ids, k):
    """The ends of each row of the whole matrix, by the order of scores."""
    ranked = [Scores(ids, row.double().numpy(), "harm").top(k) for row in matrix]
    falling = [Scores(ids, -row.double().numpy(), "help").top(k) for row in matrix]
    harmful, helpful = (tuple(tuple(row for row, _ in ends) for ends in side) for side in (ranked, falling))
    values = [[[value for _, value in ends] for ends in side] for side in (ranked, falling)]
    return harmful, torch.tensor(values[0], dtype=torch.float64), helpful, -torch.tensor(values[1], dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 3, 11])
@pytest.mark.parametrize(("batch_size", "query_batch"), [(1, 1), (4, 2), (64, 64)])
@pytest.mark.parametrize("relative", [None, "loss"])
def test_equals_the_ends_of_the_matrix(relative, batch_size, query_batch, k):
    # rejects ends of absolute values, swapped ends, the last batch only, and queries in another order
    model, rows, queries = model_of("mlp"), rows_of(), rows_of(5, seed=2)
    options = {"curvature": fit_curvature(model, rows), "relative": relative, "damping": 0.05, "weight_decay": 0.01}
    sizes = {"batch_size": batch_size, "query_batch": query_batch}
    top = top_influence(model, rows, queries, k, **options, **sizes)
    matrix = influence(model, rows, queries, **options, **sizes)
    harmful, harmful_values, helpful, helpful_values = both_ends(matrix, rows.ids, k)
    assert top.queries == queries.ids
    assert top.harmful == harmful
    assert top.helpful == helpful
    torch.testing.assert_close(top.harmful_values, harmful_values, rtol=0, atol=0)
    torch.testing.assert_close(top.helpful_values, helpful_values, rtol=0, atol=0)
    assert (top.harmful_values[:, 0] > top.helpful_values[:, 0]).all()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_ties_go_by_id(batch_size, monkeypatch):
    # ids as strings: '10' before '9'; whatever the batches, and at the edge of the k
    matrix = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0, 1.0, 0.0, 0.0, 2.0, 1.0, 0.0]])
    model, rows = model_of("mlp"), Rows.from_tensors(torch.randn(11, 12).double(), torch.arange(11) % 3)

    def tiles(self):
        yield torch.tensor([0]), ((part, matrix[:, part]) for part in torch.arange(11).split(batch_size))

    monkeypatch.setattr(InfluencePair, "tiles", tiles)
    for k in (2, 5, 11):
        top = top_influence(model, rows, rows.only(["0"]), k)
        harmful, _, helpful, _ = both_ends(matrix, rows.ids, k)
        assert (top.harmful, top.helpful) == (harmful, helpful)
    assert harmful[0][4] == "0"
    assert helpful[0][0] == "10"


def test_no_more_than_a_batch_is_held(monkeypatch):
    # the candidates that wait for the next batch are k, not all rows so far
    from unlearn.detect.top_influence import _Largest

    held, add = [], _Largest.add

    def watched(self, values, ranks):
        add(self, values, ranks)
        held.append((values.shape, self.values.shape))

    monkeypatch.setattr(_Largest, "add", watched)
    top_influence(model_of("mlp"), rows_of(40), rows_of(7, seed=2), 2, batch_size=8, query_batch=3)
    assert {shape for pair in held for shape in pair} == {(3, 8), (1, 8), (3, 2), (1, 2)}


def test_refusals():
    model, rows = model_of("mlp"), rows_of()
    for k in (0, 12):
        with pytest.raises(InputError, match=f"k is {k} and there are 11 rows; give a number from 1 to 11"):
            top_influence(model, rows, rows, k)
    with pytest.raises(InputError, match="query_batch is 0"):
        top_influence(model, rows, rows, 1, query_batch=0)
    with pytest.raises(InputError, match="did you mean 'parameters'"):
        top_influence(model, rows, rows, 1, relative="parameter")
    with pytest.raises(StaleCurvatureError, match="belongs to weights"):
        top_influence(model_of("mlp", seed=9), rows, rows, 1, curvature=fit_curvature(model, rows))
    more = Rows.from_tensors(rows.batch(torch.arange(11))[0], rows.labels + 1)
    with pytest.raises(InputError, match="label 3 is outside the model's 3 classes"):
        top_influence(model, rows, more, 1)
