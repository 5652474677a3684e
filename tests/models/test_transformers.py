"""Transformers of Hugging Face: gradients, curvature, scores and products against one row at a time by torch.func."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from transformers_cases import CASES, N, T, V, build, fisher_gradients, options_of, row_loss_gradients, rows_of

import unlearn
from unlearn.curvature import find_layers, fit_curvature, gauss_newton, layer_gradients
from unlearn.errors import InputError
from unlearn.models import build_model
from unlearn.predict import predict
from unlearn.tasks import get_task
from unlearn.training import fresh_weights

DAMPING = 0.1


def flat(vector: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in vector.values()])


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_rows_are_those_of_one_row_alone(case: str) -> None:
    # rejects a transposed weight read as it lies, positions of padding that count, rows taken for positions
    model, rows, task = build(case)
    layers, uncovered = find_layers(model, rows)
    assert uncovered == {}
    expected = row_loss_gradients(model, rows, task)
    for positions, gradients in layer_gradients(model, rows, task, layers, 4):
        for k, row in enumerate(positions.tolist()):
            for layer in layers:
                a, d = gradients[layer.name]
                torch.testing.assert_close(d[:, k].mT @ a[:, k], layer.block(expected[row]), rtol=1e-8, atol=1e-10)


def test_what_has_factors_and_what_has_not() -> None:
    """Conv1D has Kronecker factors; a tied head and position tables have exact columns and are named."""
    forms = {}
    for case in ("gpt2-lm", "gpt2-lm-own-head"):
        model, rows, _ = build(case)
        forms[case] = {layer.name: (layer.kind, layer.form) for layer in find_layers(model, rows).layers}
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            assert forms[case][f"transformer.h.1.{part}"] == ("Linear", "factors")
    assert forms["gpt2-lm"]["transformer.wte"] == ("other", "dense")
    assert forms["gpt2-lm-own-head"]["transformer.wte"] == ("Embedding", "factors")
    assert forms["gpt2-lm-own-head"]["lm_head"] == ("Linear", "factors")


@pytest.mark.parametrize("case", ["bert", "gpt2", "gpt2-lm", "gpt2-lm-own-head"])
def test_curvature_and_self_influence_are_those_of_dense_gradients(case: str) -> None:
    model, rows, task = build(case)
    curvature = fit_curvature(model, rows, task=task, fisher="exact", batch_size=4)
    columns = fisher_gradients(model, rows, task)
    scores = unlearn.self_influence(model, rows, curvature=curvature, task=task, damping=DAMPING, batch_size=4)
    expected = torch.zeros(N, dtype=torch.float64)
    losses = row_loss_gradients(model, rows, task)
    for layer in curvature.layers:
        block = curvature.blocks[layer.name]
        total = torch.zeros(layer.shape, dtype=torch.float64)
        for row in columns:
            for c in range(len(next(iter(row.values())))):
                total += block.basis.rotate(layer.block({name: part[c] for name, part in row.items()})).square()
        torch.testing.assert_close(block.eigenvalues, total / N, rtol=1e-7, atol=1e-10)
        for k, gradient in enumerate(losses):
            rotated = block.basis.rotate(layer.block(gradient))
            expected[k] += (rotated.square() / (total / N + DAMPING)).sum()
    found = dict(zip(scores.ids, scores.values, strict=True))
    for k in range(N):
        assert found[f"row-{k}"] == pytest.approx(float(expected[k]), rel=1e-6)


@pytest.mark.parametrize("case", ["bert", "gpt2-lm", "llama-lm"])
def test_gauss_newton_products_are_dense(case: str) -> None:
    model, rows, task = build(case)
    generator = torch.Generator().manual_seed(3)
    v = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in model.named_parameters()}
    expected = torch.zeros_like(flat(v))
    for row in fisher_gradients(model, rows, task):
        table = torch.cat([row[name].flatten(1) for name in v], 1)
        expected += table.T @ (table @ flat(v)) / N
    product = gauss_newton(model, rows, task=task).matvec(v)
    rtol, atol = (1e-7, 1e-9) if "llama" not in case else (1e-3, 1e-5)  # its norm computes in float32 by itself
    torch.testing.assert_close(flat({name: product[name] for name in v}), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", ["ekfac", "kfac"])
@pytest.mark.parametrize("case", ["bert", "gpt2", "gpt2-lm-own-head"])
def test_more_padding_changes_no_score(case: str, kind: str) -> None:
    # rejects padding that is attended to, that counts in the loss, or in the second moments of inputs
    model, rows, task = build(case)
    padded = rows_of(case, T + 3)
    scores = []
    for data in (rows, padded):
        curvature = fit_curvature(model, data, task=task, kind=kind)
        scores.append(unlearn.self_influence(model, data, curvature=curvature, task=task, damping=DAMPING).values)
    torch.testing.assert_close(torch.as_tensor(scores[0]), torch.as_tensor(scores[1]), rtol=1e-6, atol=1e-9)


def test_a_removal_from_a_tied_language_model(tmp_path: Path) -> None:
    model, rows, task = build("gpt2-lm")
    settings = unlearn.TrainSettings(epochs=6, batch_size=3, lr=0.05)
    trained, record = unlearn.train(model, rows, settings, task=task, folder=tmp_path, snapshot_epochs=range(7), seed=1)
    edit = unlearn.remove(trained, rows, ["row-1"], record=record, budget=2.0, task=task)
    gone = rows.only(["row-1"])
    before, after = (float(get_task(task).loss(predict(m, gone), gone.labels)) for m in (trained, edit.model))
    assert after > before
    assert edit.model.lm_head.weight is edit.model.transformer.wte.weight
    path = tmp_path / "edited.safetensors"
    unlearn.save_checkpoint(path, edit.model)
    loaded, _ = unlearn.load_checkpoint(path, copy.deepcopy(model))
    assert torch.equal(predict(loaded, rows), predict(edit.model, rows))


def test_built_from_a_folder_without_a_download(tmp_path: Path) -> None:
    """A new head is drawn by the seed, what is in the folder is read; a retrain starts there too."""
    source = build_model("hf-causal-lm", seed=7, **options_of("gpt2-lm"))
    source.save_pretrained(tmp_path / "copy")
    model = build_model("hf-sequence-classification", path=str(tmp_path / "copy"), classes=4, seed=1)
    assert torch.equal(model.transformer.wte.weight, source.transformer.wte.weight)
    assert model.score.weight.shape == (4, 8)
    again, other = fresh_weights(model, 1), fresh_weights(model, 2)
    assert torch.equal(again.score.weight, model.score.weight)
    assert not torch.equal(other.score.weight, model.score.weight)
    assert torch.equal(other.transformer.wte.weight, source.transformer.wte.weight)
    bare = build_model("hf-causal-lm", path=str(tmp_path / "copy"), pretrained=False, seed=1)
    assert not torch.equal(bare.transformer.wte.weight, source.transformer.wte.weight)
    assert bare.config.n_embd == 8


def test_bad_options_are_one_line(tmp_path: Path) -> None:
    good = options_of("bert")
    without_padding = {"config": {**options_of("gpt2")["config"], "pad_token_id": None}, "classes": 3}
    cases = {
        "state one of path": {},
        "'gpt2' is no folder with a config.json; nothing is downloaded, so where there is network": {"path": "gpt2"},
        "config has no model_type": {"config": {"hidden_size": 8}},
        "unknown model_type 'berd'; did you mean 'bert'": {"config": {"model_type": "berd"}},
        "has no option 'hiden_size'; did you mean 'hidden_size'": {"config": {"model_type": "bert", "hiden_size": 8}},
        "has no pad_token_id": without_padding,
        "has no option 'labels'": {**good, "labels": 3},
    }
    for message, options in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            build_model("hf-sequence-classification", **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="classes belongs to 'hf-sequence-classification'"):
        build_model("hf-causal-lm", config=good["config"], classes=2)


def test_vocabulary_is_not_covered_twice() -> None:
    model, rows, _ = build("gpt2-lm")
    covered = [name for layer in find_layers(model, rows).layers for name in layer.parameters]
    assert sorted(covered) == sorted(name for name, _ in model.named_parameters())
    assert model.get_parameter("transformer.wte.weight").numel() == V * 8
