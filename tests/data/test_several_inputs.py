"""Rows whose input is several tensors: dictionaries (keyword arguments), tuples, Hugging Face columns."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from language_model_cases import N, T, V, language_model, sentences, token_rows
from torch import Tensor, nn

from unlearn.curvature import fit_curvature, gauss_newton, layer_gradients, loss_gradient
from unlearn.data import as_rows
from unlearn.errors import InputError
from unlearn.predict import predict
from unlearn.training import TrainSettings, train


def test_hugging_face_columns_are_keyword_arguments():
    rows = as_rows(Dataset.from_dict({name: part.tolist() for name, part in sentences().items()}))
    inputs, labels = rows.batch(torch.tensor([1, 3]))
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert torch.equal(inputs["attention_mask"], sentences()["attention_mask"][[1, 3]])
    assert torch.equal(labels, sentences()["labels"][[1, 3]])
    assert rows.classes is None
    assert rows.fingerprint == token_rows().fingerprint
    one = as_rows(Dataset.from_dict({"a": [[1.0], [2.0]], "b": [[3.0], [4.0]], "y": [0, 1]}), input_column=["b", "a"])
    assert one[1][0]["b"].tolist() == [4.0]


def test_every_tensor_of_a_row_counts_in_its_digest():
    columns = sentences()
    labels = columns.pop("labels")
    changed = {name: part.clone() for name, part in columns.items()}
    changed["attention_mask"][2, 4] = 0
    first, second = as_rows((columns, labels)), as_rows((changed, labels))
    assert [row for row in first.ids if first.digests[row] != second.digests[row]] == ["2"]


@pytest.mark.parametrize("tied", [True, False])
def test_padding_changes_neither_gradient_nor_curvature(tied: bool):
    # a mask that is forgotten in the loss, in the sampled labels or in the Fisher product would show
    model, rows = language_model(tied), token_rows()
    short = rows.only(["1", "6"])  # of length 3
    columns = {name: part[:, :3] for name, part in short.batch(torch.arange(2))[0].items()}
    cut = as_rows((columns, short.labels[:, :3]), ids=["1", "6"])
    options = {"task": "language-modelling"}
    for name, part in loss_gradient(model, short, **options).items():
        torch.testing.assert_close(part, loss_gradient(model, cut, **options)[name], rtol=1e-9, atol=1e-12)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, part in gauss_newton(model, short, **options).matvec(v).items():
        torch.testing.assert_close(part, gauss_newton(model, cut, **options).matvec(v)[name], rtol=1e-9, atol=1e-12)
    fits = [fit_curvature(model, data, kind="diagonal", **options) for data in (short, cut)]
    for name, part in fits[0].matvec(v).items():
        torch.testing.assert_close(part, fits[1].matvec(v)[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_models_gradients_row_by_row(tied: bool):
    model, rows = language_model(tied), token_rows()
    curvature = fit_curvature(model, rows, task="language-modelling", batch_size=3)
    assert curvature.uncovered == {}
    for positions, gradients in layer_gradients(model, rows, "language-modelling", curvature.layers, 3):
        for k, position in enumerate(positions.tolist()):
            expected = loss_gradient(model, rows.at(torch.tensor([position])), task="language-modelling")
            for layer in curvature.layers:
                a, d = gradients[layer.name]
                found = layer.vector(d[:, k].mT @ a[:, k])
                for name, part in found.items():
                    torch.testing.assert_close(part, expected[name], rtol=1e-9, atol=1e-12)


def test_a_language_model_is_trained_and_predicts():
    model, rows = language_model().float(), token_rows()
    settings = TrainSettings(epochs=30, batch_size=4, lr=0.2)
    trained, record = train(model, rows, settings, task="language-modelling")
    assert record.task == "language-modelling"
    assert predict(trained, rows).shape == (N, T, V)
    from unlearn.tasks import get_task

    losses = [get_task("language-modelling").loss(predict(m, rows), rows.labels).mean() for m in (model, trained)]
    assert losses[1] < 0.5 * losses[0]


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.first(x) + self.second(y)


def test_a_tuple_is_positional_arguments():
    x, y, labels = torch.randn(6, 2), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    rows = as_rows(((x, y), labels))
    dataset = as_rows([((x[k], y[k]), labels[k]) for k in range(6)])
    assert rows.fingerprint == dataset.fingerprint
    model = Sum()
    torch.testing.assert_close(predict(model, dataset.only(["4"])), model(x[4:5], y[4:5]).detach())
    first, second = (fit_curvature(model, data) for data in (rows, dataset))
    assert first.mean_eigenvalue == second.mean_eigenvalue


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_bad_inputs_are_named():
    columns = sentences()
    labels = columns.pop("labels")
    with pytest.raises(InputError, match=r"inputs of data have \{'input_ids': 8, 'attention_mask': 7\} rows"):
        as_rows((columns | {"attention_mask": columns["attention_mask"][1:]}, labels))
    x = torch.zeros(6, 2)
    x[3, 1] = float("nan")
    rows = as_rows(({"x": torch.zeros(6, 2), "y": x}, torch.zeros(6)))
    with pytest.raises(InputError, match="in rows 3"):
        rows.batch(torch.arange(6))
    with pytest.raises(InputError, match="has no column 'c'"):
        as_rows(Dataset.from_dict({"a": [[1.0]], "y": [0]}), input_column=["a", "c"])
    with pytest.raises(InputError, match="differ in shape"):
        as_rows(Dataset.from_dict({"input_ids": [[1, 2], [1]], "labels": [0, 1]})).batch(torch.arange(2))
    with pytest.raises(InputError, match="returns neither a tensor nor something with logits"):
        predict(Pair(2, 2), as_rows((torch.zeros(2, 2), torch.tensor([0, 1]))))
