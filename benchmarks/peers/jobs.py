"""The cases: models of the recipes, and others for growth with rows, width and classes."""

from __future__ import annotations

import torch

from benchmarks.curvature_cost import train_epoch
from benchmarks.peers.case import Case
from benchmarks.setting import Setting
from unlearn.data import Rows, load_data
from unlearn.models import build_model

RECIPES = {"mlp": "mnist5k-relabel", "cnn": "mnist5k-cnn-relabel"}
QUERIES = 32
WARM_EPOCHS = 3


def recipe_case(name: str, rows: int) -> Case:
    """Return the trained model of a recipe, seed 0, on its first rows; queries are test rows."""
    setting = Setting.of(RECIPES[name], 0)
    section = setting.recipe.model
    architecture = {"name": section.name, "options": section.options}
    some = setting.data.at(torch.arange(rows))
    return Case.of(architecture, setting.trained[0], some, setting.test.at(torch.arange(QUERIES)))


def grown_case(name: str, rows: int, *, widths: tuple[int, int] | None = None, classes: int = 10) -> Case:
    """Return a model of a recipe's kind, trained for a few epochs, with other widths or numbers of rows or classes.

    Beyond the 4,000 rows of MNIST-5k images are shifted by whole pixels; beyond ten classes the label is the digit and
    the number of the row.
    """
    section = Setting.of(RECIPES[name], 0).recipe.model
    options = section.options | ({} if widths is None else {"widths": list(widths)}) | {"classes": classes}
    data = shifted(load_data("mnist5k"), rows, classes)
    model = build_model(section.name, seed=0, **options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for _ in range(WARM_EPOCHS):
            train_epoch(model, data.at(torch.arange(min(rows, 4000))))
    return Case.of({"name": section.name, "options": options}, model.eval(), data, data.at(torch.arange(QUERIES)))


def shifted(data: Rows, rows: int, classes: int = 10) -> Rows:
    """Return so many rows: the given ones, then their images shifted by one or more pixels."""
    inputs, labels = data.batch(torch.arange(len(data)))
    moves = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)]
    needed = moves[: -(-rows // len(data))]
    images = torch.cat([inputs.roll(move, (2, 3)) for move in needed])[:rows]
    finer = labels.repeat(len(needed))[:rows] * (classes // 10) + torch.arange(rows) % (classes // 10)
    return Rows.from_tensors(images, finer, classes=classes)
