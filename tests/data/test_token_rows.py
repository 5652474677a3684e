"""Rows taken apart into tokens: gradients add up to those of the rows, a score is that of the token alone."""

from __future__ import annotations

import pytest
import torch
from language_model_cases import language_model
from language_model_cases import token_rows as sentences

import unlearn
from unlearn.curvature import find_layers, fit_curvature, layer_gradients, loss_gradient
from unlearn.data import as_rows, token_rows
from unlearn.errors import InputError
from unlearn.tasks import LanguageModelling

TASK = "language-modelling"


def test_the_gradient_of_a_sentence_is_the_mean_of_its_tokens() -> None:
    # rejects a token at the wrong position, tokens of padding, and a row's weight shared out twice
    model, rows = language_model(), sentences()
    tokens = token_rows(rows)
    assert len(tokens) == int((rows.labels != -100).sum())
    for row in rows.ids:
        own = tokens.only([name for name in tokens.ids if name.startswith(f"{row}@")])
        summed = loss_gradient(model, own, task=TASK)
        expected = loss_gradient(model, rows.only([row]), task=TASK)
        for name, part in summed.items():
            torch.testing.assert_close(part / len(own), expected[name], rtol=1e-10, atol=1e-12)


def test_self_influence_of_a_token_is_that_of_its_own_gradient() -> None:
    model, rows = language_model(), sentences()
    curvature = fit_curvature(model, rows, task=TASK)
    tokens = token_rows(rows, ["1", "4"])
    assert [name.split("@")[0] for name in tokens.ids] == ["1"] * 2 + ["4"]
    scores = unlearn.self_influence(model, tokens, curvature=curvature, task=TASK, damping=0.1)
    for row, value in zip(scores.ids, scores.values, strict=True):
        gradient = loss_gradient(model, tokens.only([row]), task=TASK)
        solved = curvature.solve(gradient, damping=0.1)
        assert value == pytest.approx(sum(float((gradient[n] * solved[n]).sum()) for n in gradient), rel=1e-9)


def test_rows_of_classes_have_no_tokens() -> None:
    with pytest.raises(InputError, match="tokens need one integer for each position"):
        token_rows(as_rows((torch.zeros(2, 3), torch.tensor([0, 1]))))


def test_a_wide_head_keeps_the_diagonal_of_its_output_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary has no basis of its own; eigenvalues are the mean squares with unit vectors there."""
    monkeypatch.setattr("unlearn.curvature.layers.WIDE_OUTPUTS", 6)
    model, rows = language_model(tied=False), sentences()
    curvature = fit_curvature(model, rows, task=TASK, fisher="exact")
    (head,) = (layer for layer in find_layers(model, rows).layers if layer.name == "head")
    block = curvature.blocks["head"]
    assert (block.output_basis, tuple(block.input_basis.shape)) == (None, (1, 4, 4))
    total = torch.zeros(1, 7, 4, dtype=torch.float64)
    inputs, labels = rows.batch(torch.arange(len(rows)))
    with torch.no_grad():
        roots = LanguageModelling().fisher_root(model.eval()(**inputs).logits, labels)
    for root in roots:
        task = LanguageModelling()
        task.output_gradient = lambda outputs, labels, root=root: root  # type: ignore[method-assign, misc]
        for _, gradients in layer_gradients(model, rows, task, [head]):
            a, d = gradients["head"]
            total += (d.mT @ a @ block.input_basis[:, None]).square().sum(1)
    torch.testing.assert_close(block.eigenvalues, total / len(rows), rtol=1e-9, atol=1e-12)
