"""Which parameters an edit may move, and the curvature of these alone."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterable
from dataclasses import replace

from torch import nn

from unlearn.curvature import Curvature
from unlearn.curvature.layers import pattern_names, patterns_of
from unlearn.errors import InputError, some


def chosen_parameters(model: nn.Module, layers: str | Iterable[str]) -> list[str]:
    """Return the trained parameters that patterns choose, in the order of the model, each by its first name.

    Args:
        model: any module.
        layers: patterns (as of ``fnmatch``) of module or parameter names; a module is chosen whole, a parameter that
            modules share under any of its names.

    Raises:
        InputError: there is no pattern, or one that matches no parameter that is trained.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> chosen_parameters(model, "2"), chosen_parameters(model, ["*.weight"])
    (['2.weight', '2.bias'], ['0.weight', '2.weight'])
    """
    patterns = patterns_of(layers)
    if not patterns:
        raise InputError("layers has no pattern; name at least one layer to edit, or pass layers=None for all")
    first: dict[int, str] = {}
    chosen: dict[str, set[str]] = {pattern: set() for pattern in patterns}
    everywhere = list(model.named_parameters(remove_duplicate=False))
    for name, parameter in everywhere:
        one = first.setdefault(id(parameter), name)
        for pattern, found in chosen.items():
            if parameter.requires_grad and pattern_names(pattern, name):
                found.add(one)
    for pattern, found in chosen.items():
        if not found:
            known = [name for name, parameter in everywhere if parameter.requires_grad]
            raise InputError(
                f"layers pattern {pattern!r} matches no trained parameter and no module that has one; the model has "
                f"{some(known, 12)}"
            )
    named = set().union(*chosen.values())
    return [name for name, _ in model.named_parameters() if name in named]


def patterns_of_others(model: nn.Module, names: Collection[str]) -> list[str]:
    """Return skip patterns that leave out every trained parameter but these; none where these are all.

    >>> patterns_of_others(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), ["1.weight", "1.bias"])
    ['0.weight', '0.bias']
    """
    return [glob.escape(name) for name, p in model.named_parameters() if p.requires_grad and name not in names]


def restricted(curvature: Curvature, names: Collection[str]) -> Curvature:
    """Return the blocks of these parameters: the curvature of the model with all others held fixed.

    Raises:
        InputError: a parameter has no block, or shares one with a parameter that is not named.
    """
    missing = [name for name in names if name not in curvature.covered]
    if missing:
        raise InputError(f"the curvature given does not cover {some(map(repr, missing))}; fit it with these layers")
    chosen = [layer.name for layer in curvature.layers if layer.parameters.keys() & set(names)]
    blocks = {name: curvature.blocks[name] for name in chosen}
    left = {name: "skipped" for name in curvature.covered if name not in names}
    torn = [name for block in blocks.values() for name in block.layer.parameters if name in left]
    if torn:
        raise InputError(
            f"layers= leaves out {some(map(repr, torn))}, which share a curvature block with parameters that it names; "
            "name the whole layer, or leave curvature= out"
        )
    return replace(curvature, blocks=blocks, uncovered={**curvature.uncovered, **left})
