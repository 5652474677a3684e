"""The shipped recipes on torchvision's sets: complete, and planned on small files in the original format."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from torchvision_files import let_small_files_pass, write_cifar, write_flowers, write_food, write_idx, write_svhn

from unlearn.models import build_model
from unlearn.pipeline import Run, dry_run, plan_run, run_stages
from unlearn.recipe import Recipe, load_recipe, parse_recipe

pytest.importorskip("torchvision")

FILES: dict[str, Callable[[Path], None]] = {
    "fashion-mnist": lambda root: write_idx(root, "FashionMNIST"),
    "flowers102": write_flowers,
    "food101": write_food,
    "cifar10-class-removal": write_cifar,
    "svhn-class-removal": write_svhn,
}


@pytest.fixture
def on_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recipe]:
    """Return a shipped recipe, in a folder where its files are, small."""

    def load(name: str) -> Recipe:
        let_small_files_pass(monkeypatch)
        (tmp_path / "data").mkdir()
        FILES[name](tmp_path / "data")
        monkeypatch.chdir(tmp_path)
        return load_recipe(name)

    return load


@pytest.mark.parametrize("name", FILES)
def test_data_and_model_of_a_recipe_fit(name: str, on_small_files: Callable[[str], Recipe], tmp_path: Path):
    # rejects a model that does not take the images, classes that do not fit, and a count that the comment misstates
    recipe = on_small_files(name)
    run = Run(tmp_path / "run", recipe)
    with torch.device("meta"):  # shapes only: VGG-11 has 129 million weights
        model = build_model(recipe.model.name, **recipe.model.options)
    for rows in (run.data, run.test):
        inputs, _ = rows.batch(torch.arange(2))
        assert model(inputs.to("meta")).shape == (2, rows.classes)
    assert f"{sum(p.numel() for p in model.parameters()):,} weights" in recipe.text


@pytest.mark.parametrize("name", FILES)
def test_a_dry_run_of_a_recipe_finds_everything(name: str, on_small_files: Callable[[str], Recipe], tmp_path: Path):
    found = dry_run(Run.planned(tmp_path / "run", on_small_files(name)))
    assert found.problems == ()
    assert found.plan is not None
    assert not found.plan.uncovered
    assert sum(prod(shape) for shape in map(itemgetter("shape"), found.plan.layers)) == found.parameters
    assert not (tmp_path / "run").exists()


def test_svhn_class_removal_is_planned_and_runs(on_small_files: Callable[[str], Recipe], tmp_path: Path):
    text = on_small_files("svhn-class-removal").text
    for key, tiny in (
        ("epochs = 30", "epochs = 3"),
        ("_epochs = 4", "_epochs = 3"),
        ("references = 5", "references = 2"),
    ):
        assert key in text
        text = text.replace(key, tiny)
    recipe = parse_recipe(text)
    assert not plan_run(recipe, tmp_path / "runs", measure=False).uncovered
    run = Run.create(tmp_path / "run", recipe)
    run_stages(run)
    assert (run.folder / "report.html").exists()
    assert len(run.data) == 10


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x1_0"])
def test_a_grey_image_is_seen_as_three_equal_channels(name: str):
    # rejects a mean over the colours, or a fresh first layer
    grey, colour = (build_model(name, seed=3, channels=c, classes=4).eval() for c in (1, 3))
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)
    assert grey(images).shape == (2, 4)


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"channels is 2; images have 1 \(grey\) or 3 \(colour\)"):
        build_model("resnet18", channels=2)
