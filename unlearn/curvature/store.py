"""Curvature on disk: ``factors.safetensors`` and ``manifest.json`` in a folder.

The manifest says which weights, rows and options the factors belong to and holds the sha256 of the factors' file. It
is written last, so a folder with a manifest that fits is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearn.curvature.block import Block
from unlearn.curvature.curvature import Curvature
from unlearn.curvature.factor_file import stored_blocks, write_factors
from unlearn.curvature.layers import Layer, patterns_of
from unlearn.errors import CheckpointError, FolderError, InputError, StaleCurvatureError, did_you_mean, some
from unlearn.ranks import on_first_rank

FORMAT = 3
_FACTORS = "factors.safetensors"
_MANIFEST = "manifest.json"


def save_curvature(curvature: Curvature, folder: str | Path) -> None:
    """Write the factors to a folder, which is made where it is missing.

    Raises:
        FolderError: the folder can not be written.
    """
    on_first_rank(lambda: write_curvature(curvature, curvature.layers, curvature.blocks.values(), Path(folder)))


def write_curvature(about: Curvature, layers: Sequence[Layer], blocks: Iterable[Block], folder: Path) -> None:
    """Write blocks to a folder as they come; only when all are there does it read as a curvature.

    Args:
        about: says what the blocks belong to; its own are not looked at.
        layers: those of the blocks.
        blocks: in the order of the layers.
        folder: made where it is missing.

    Raises:
        FolderError: the folder can not be written.
    """
    table = []

    def noted() -> Iterator[Block]:
        for block in blocks:
            table.append(asdict(block.layer) | {"clamped": block.clamped})
            yield block

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / _FACTORS, lambda part: write_factors(part, layers, about.kind, noted()))
        manifest = {
            "format": FORMAT,
            "weights_digest": about.weights_digest,
            "data_fingerprint": about.data_fingerprint,
            "options": about.options,
            "rows": about.rows,
            "passes": about.passes,
            "uncovered": about.uncovered,
            "layers": table,
            "factors_sha256": _sha256(folder / _FACTORS),
        }
        text = json.dumps(manifest, indent=1) + "\n"
        _replace(folder / _MANIFEST, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise FolderError(f"curvature can not be written to {folder}: {error}; give a folder that can be") from error


def load_curvature(
    folder: str | Path,
    model: nn.Module,
    data: Any = None,
    *,
    any_weights: bool = False,
    stream: bool = False,
    **expected_options: Any,
) -> Curvature:
    """Read factors that ``curvature.save`` wrote, and refuse those that do not belong here.

    Args:
        folder: the folder.
        model: the model; its weights must be those the factors were fitted at.
        data: the rows; where given, they must be those the factors were fitted on.
        any_weights: take factors of other weights of this architecture too, as a preconditioner can be.
        stream: leave the factors in the file and read a layer's whenever it is used, so that one layer is in memory
            at a time. The folder must stay as it is meanwhile.
        **expected_options: options of :func:`fit_curvature` that the factors must have been fitted with.

    Raises:
        StaleCurvatureError: weights, rows or options differ, or the format is another.
        CheckpointError: the files are damaged or altered.
        FolderError: there is no such folder, or it holds no curvature.

    >>> import tempfile
    >>> from unlearn.curvature.fit import fit_curvature
    >>> model, data = nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fit_curvature(model, data).save(folder)
    ...     load_curvature(folder, model, data, kind="ekfac").covered
    ['weight', 'bias']
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    try:
        layers, clamped = _layers(manifest["layers"])
        about = Curvature(
            blocks={},
            uncovered=manifest["uncovered"],
            rows=manifest["rows"],
            weights_digest=manifest["weights_digest"],
            data_fingerprint=manifest["data_fingerprint"],
            options=manifest["options"],
            passes=manifest.get("passes"),
        )
        digest = manifest["factors_sha256"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / _MANIFEST} is damaged ({error!r}); fit the curvature again") from error
    _check_options(about.options, expected_options)
    if not any_weights:
        about.check(model, data)
    if not _fits(model, layers, about.uncovered):
        raise StaleCurvatureError(
            f"{folder} covers {some(layer.name for layer in layers)}, other than the layers this model trains; "
            "fit the curvature again"
        )
    path = folder / _FACTORS
    try:
        if _sha256(path) != digest:
            raise CheckpointError(f"{path} is not the file its manifest was written for; fit the curvature again")
    except OSError as error:
        raise CheckpointError(f"{path} can not be read: {error}; fit the curvature again") from error
    device = {layer.name: model.get_parameter(next(iter(layer.parameters))).device for layer in layers}
    blocks = stored_blocks(path, layers, about.kind, clamped, device)
    return replace(about, blocks=blocks if stream else dict(blocks))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FolderError(f"{folder} holds no curvature that can be read ({error}); save one there first") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); fit the curvature again") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise StaleCurvatureError(f"{path} has format {version}, this version reads {FORMAT}; fit the curvature again")
    return manifest  # type: ignore[no-any-return]


def _fits(model: nn.Module, layers: list[Layer], uncovered: dict[str, str]) -> bool:
    """Whether the layers cover what a model trains but for what was left out."""
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    covered = {name: shape for layer in layers for name, shape in layer.parameters.items()}
    return covered == {name: shape for name, shape in trained.items() if name not in uncovered} and not any(
        reason == "frozen" and name in trained for name, reason in uncovered.items()
    )


def _layers(table: list[dict[str, Any]]) -> tuple[list[Layer], dict[str, int]]:
    clamped = {row["name"]: int(row.pop("clamped")) for row in table}
    for row in table:
        row["parameters"] = {name: tuple(shape) for name, shape in row["parameters"].items()}
        row["shape"], row["batch_dims"] = tuple(row["shape"]), tuple(row["batch_dims"])
    layers = [Layer(**row) for row in table]
    return layers, clamped


def _check_options(options: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if name not in options:
            raise InputError(f"unknown option {name!r}; {did_you_mean(name, options)}")
        if isinstance(value, torch.dtype):
            value = str(value)
        elif name == "skip":
            value = patterns_of(value)
        if options[name] != value:
            raise StaleCurvatureError(
                f"the curvature was fitted with {name}={options[name]!r}, not {value!r}; fit it with these options"
            )


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            total.update(chunk)
    return total.hexdigest()
