"""A removal from a small causal language model: attention, norms, tied embedding, padded dictionary batches."""

from __future__ import annotations

from pathlib import Path

import pytest
from language_model_cases import language_model, token_rows
from torch import nn

import unlearn
from unlearn.predict import predict
from unlearn.tasks import get_task
from unlearn.training import TrainSettings, replay, train

TASK = "language-modelling"


@pytest.mark.parametrize("budget", [0, 3])
def test_a_sentence_is_removed_in_the_direction_of_retraining(budget: float, tmp_path: Path) -> None:
    # the sign, padding that counts, or a tied weight moved twice would show
    rows, settings = token_rows(), TrainSettings(epochs=10, batch_size=4, lr=0.1)
    original, record = train(language_model(), rows, settings, task=TASK, folder=tmp_path, snapshot_epochs=range(11))
    retrained = replay(language_model(), rows.without(["2"]), record)[0]
    edit = unlearn.remove(original, rows, ["2"], record=record, budget=budget, task=TASK)

    def loss(model: nn.Module) -> float:
        row = rows.only(["2"])
        return float(get_task(TASK).loss(predict(model, row), row.labels))

    before, after, goal = (loss(model) for model in (original, edit.model, retrained))
    assert goal > before + 0.1
    assert abs(after - goal) < 0.5 * abs(before - goal)
