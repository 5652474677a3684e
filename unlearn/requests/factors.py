"""Curvature kept between requests, so that a small request does not pay for fitting it.

Factors lie in ``requests/curvature/<weights>-<rows>``: twelve digits of the digest of the weights and twelve of the
fingerprint of the rows they were fitted on. The ledger says with each edit which ones are in force after it.

The rule. They only precondition the solve, so those of an earlier edit serve. New ones are fitted after a retrain,
where a purge took them or a file was altered, and after an edit whose solve ended with over ``STALE`` times the
residual of the one that they were fitted for (:mod:`unlearn.repair.chain`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from unlearn.checkpoint.digests import sha256_of_file
from unlearn.curvature import Curvature, load_curvature
from unlearn.repair import KeptFactors
from unlearn.requests.state import Batch, State

FOLDER = "curvature"
FILES = ("factors.safetensors", "manifest.json")


def factors_folder(run: Path, key: str) -> Path:
    """Return where the factors of a key lie."""
    return run / "requests" / FOLDER / key


def factors_key(curvature: Curvature) -> str:
    """Return the key of weights and rows."""
    return f"{curvature.weights_digest[:12]}-{curvature.data_fingerprint[:12]}"


def keep_factors(run: Path, batch: Batch, factors: KeptFactors | None, before: dict[str, Any] | None) -> Any:
    """Write the factors in force after an edit, if they are new; return what the ledger says of them.

    Args:
        run: the run folder.
        batch: the one that was edited.
        factors: in force after it; None where the next edit fits new ones.
        before: what the ledger says of those in force before it.
    """
    if factors is None:
        return None
    key = factors_key(factors.curvature)
    if before is not None and before["key"] == key:
        return before
    folder = factors_folder(run, key)
    factors.curvature.save(folder)
    digests = {name: sha256_of_file(folder / name) for name in FILES}
    return {"key": key, "fitted_by": batch.number, "residual": factors.residual, "sha256": digests}


def factors_in_force(run: Path, said: dict[str, Any] | None, model: nn.Module) -> KeptFactors | None:
    """Return the factors that the ledger names; None where there are none, or they are not what it says."""
    if said is None:
        return None
    folder = factors_folder(run, said["key"])
    for name, digest in said["sha256"].items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != digest:
            return None
    return KeptFactors(load_curvature(folder, model, any_weights=True), said["residual"])


def factors_knowing_deleted(run: Path, state: State) -> Iterator[Path]:
    """Yield the folders of factors that were fitted on rows changed since; those in force may know none of them."""
    said = state.batches[state.current].edited.get("factors") if state.stack and state.current else None
    changed = [k for k in state.stack if state.batches[k].removed or state.batches[k].relabelled]
    for folder in sorted((run / "requests" / FOLDER).glob("*")):
        if said is None or folder.name != said["key"] or said["fitted_by"] != changed[-1]:
            yield folder
