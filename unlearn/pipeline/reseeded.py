"""The same recipe under other seeds, as a recipe of its own that says so."""

from __future__ import annotations

import json
from typing import Any

from unlearn.recipe import Recipe, parse_recipe


def reseeded(recipe: Recipe, shift: int) -> Recipe:
    """Return the recipe with its seeds of noise, corruption and training raised by ``shift``, stated in its text.

    The split into training and test rows stays. A shift of 0 returns the recipe itself.

    >>> from unlearn.recipe import load_recipe
    >>> third = reseeded(load_recipe("digits-quick"), 2)
    >>> third.train.train_seed, third.data.noise.noise_seed, third.data.split_seed
    (2, 2, 0)
    """
    if shift == 0:
        return recipe
    values = recipe.model_dump(mode="json", exclude={"text"})
    values["train"]["train_seed"] += shift
    for section, seed in (("noise", "noise_seed"), ("corruption", "seed")):
        if values["data"][section] is not None:
            values["data"][section][seed] += shift
    stated = {key: value for key, value in values.items() if value is not None}
    return parse_recipe("".join(f"{key} = {_toml(value)}\n" for key, value in stated.items()), recipe.name)


def _toml(value: Any) -> str:
    """Return a value as TOML in one line; None is left out of tables, for TOML has none."""
    if isinstance(value, dict):
        cells = [f"{json.dumps(str(key))} = {_toml(cell)}" for key, cell in value.items() if cell is not None]
        return "{ " + ", ".join(cells) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
