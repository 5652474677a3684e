"""LoRA adapters: curvature, scores and edits are of the adapters alone; the base keeps every bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

pytest.importorskip("peft")
pytest.importorskip("transformers")

from transformers_cases import CASES, TASKS, options_of, rows_of

import unlearn
from unlearn.curvature import find_layers, fit_curvature, layer_gradients, loss_gradient
from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.models import build_model
from unlearn.modes import evaluation
from unlearn.predict import predict
from unlearn.tasks import get_task
from unlearn.training import fresh_weights

TARGETS = {"gpt2": ["c_attn", "c_fc"], "gpt2-lm": ["c_attn"], "bert": ["query", "value"], "llama-lm": ["q_proj"]}


def build(case: str, seed: int = 0) -> tuple[nn.Module, Rows, str]:
    lora = {"r": 2, "target_modules": TARGETS[case], "lora_dropout": 0.0}
    model = build_model(CASES[case][0], seed=seed, **options_of(case), lora=lora).double()
    return model, rows_of(case), TASKS[CASES[case][0]]


def stirred(model: nn.Module) -> nn.Module:
    """Move the adapters off their start, where half of their gradients are zero."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("case", TARGETS)
def test_only_adapters_are_covered_and_their_gradients_are_right(case: str) -> None:
    model, rows, task = build(case)
    stirred(model)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    layers, uncovered = find_layers(model, rows)
    assert {name for layer in layers for name in layer.parameters} == set(trained)
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert set(uncovered.values()) == {"frozen"}

    def loss(weights, inputs, label):
        return get_task(task).loss(functional_call(model, weights, (), inputs)["logits"], label).sum()

    for positions, gradients in layer_gradients(model, rows, task, layers, 4):
        for k, row in enumerate(positions.tolist()):
            inputs, labels = rows.batch(torch.tensor([row]))
            with evaluation(model):
                expected = grad(loss)(trained, inputs, labels)
            for layer in layers:
                a, d = gradients[layer.name]
                torch.testing.assert_close(d[:, k].mT @ a[:, k], layer.block(expected), rtol=1e-8, atol=1e-10)


def test_self_influence_is_that_of_the_adapters() -> None:
    model, rows, task = build("gpt2")
    stirred(model)
    curvature = fit_curvature(model, rows, task=task)
    scores = unlearn.self_influence(model, rows, curvature=curvature, task=task, damping=0.1)
    for row, value in zip(scores.ids, scores.values, strict=True):
        gradient = loss_gradient(model, rows.only([row]), task=task)
        solved = curvature.solve(gradient, damping=0.1)
        assert value == pytest.approx(sum(float((gradient[n] * solved[n]).sum()) for n in gradient), rel=1e-8)


@pytest.mark.parametrize("case", ["gpt2", "gpt2-lm"])
@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_an_edit_leaves_the_base_as_it_is(case: str, budget: float, tmp_path: Path) -> None:
    # rejects a weight decay or momentum that moves frozen weights, and an edit of the merged model
    model, rows, task = build(case)
    settings = unlearn.TrainSettings(epochs=6, batch_size=3, lr=0.2, weight_decay=1e-3)
    trained, record = unlearn.train(model, rows, settings, task=task, folder=tmp_path, snapshot_epochs=range(7))
    edit = unlearn.remove(trained, rows, ["row-1"], record=record, budget=budget, task=task)
    moved = dict(edit.model.named_parameters())
    for name, before in model.named_parameters():
        assert torch.equal(moved[name], before) == (not before.requires_grad), name
    gone = rows.only(["row-1"])
    before, after = (float(get_task(task).loss(predict(m, gone), gone.labels)) for m in (trained, edit.model))
    assert after > before
    path = tmp_path / "edited.safetensors"
    unlearn.save_checkpoint(path, edit.model)
    loaded, _ = unlearn.load_checkpoint(path, copy.deepcopy(model))
    assert torch.equal(predict(loaded, rows), predict(edit.model, rows))


@pytest.mark.parametrize("own", [False, True])
def test_a_retrain_starts_at_untrained_adapters_on_the_same_base(own: bool) -> None:
    # B starts at 0, so that the model starts as its base; drawn like any linear layer it would not
    model = stirred(build("gpt2-lm")[0])
    if own:  # a model that a user made with peft has no rebuild
        del model.rebuild
    fresh, other = fresh_weights(model, 1), fresh_weights(model, 2)
    for (name, before), after, another in zip(
        model.named_parameters(), fresh.parameters(), other.parameters(), strict=True
    ):
        if "lora_B" in name:
            assert not after.any()
        elif "lora_A" in name:
            assert not torch.equal(after, another)
        else:
            assert torch.equal(after, before)


def test_options_of_adapters_are_peft_s() -> None:
    with pytest.raises(InputError, match=r"can not be built with .*unexpected keyword argument 'rank'"):
        build_model("hf-causal-lm", **options_of("gpt2-lm"), lora={"rank": 2})
