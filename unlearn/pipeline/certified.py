"""A run of a certified head: train it, serve requests until the budget refuses one, and keep the account."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unlearn.data import Rows
from unlearn.data.draws import permutation
from unlearn.errors import BudgetSpentError, InputError, UncertifiedError
from unlearn.pipeline.run import FORMAT, Run
from unlearn.progress import track
from unlearn.recipe import CertifiedSection
from unlearn.repair import CertifiedHead, Changes, Removal, train_certified_head

HEAD_FILE = "head.safetensors"
ACCOUNT_FILE = "certified.json"


def train_head(run: Run) -> CertifiedHead:
    """Train the head of a run on its rows; nothing is written."""
    section = _section(run)
    return train_certified_head(
        run.data,
        weight_decay=run.recipe.train.weight_decay,
        sigma=section.sigma,
        epsilon=section.epsilon,
        delta=section.delta,
        seed=run.recipe.train.train_seed,
        unit_rows=bool(run.recipe.model.options.get("unit_rows", False)),
    )


def run_certified(run: Run, *, tell: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Train, serve the recipe's requests, and write the head and its account; a finished run is read.

    The head after the last request is written once, before the account that marks the run as finished: a run that was
    stopped starts over with the same noise and the same requests.

    Returns:
        What ``certified.json`` says: accuracies, every request with its bounds, the refusal, the account.
    """
    if (run.folder / ACCOUNT_FILE).exists():
        return run.read(ACCOUNT_FILE, "certified removal")
    head = train_head(run)
    trained = {"rows": len(head.rows), "test_accuracy": head.accuracy(run.test), **head.account()}
    if tell is not None:
        tell("trained")
    served: list[dict[str, Any]] = []
    refusal = None
    requests = _requests(head.rows, _section(run))
    for ids in track(requests, "certified removals"):
        try:
            removal = head.remove(ids, steps=_section(run).steps)
        except BudgetSpentError as error:
            refusal = str(error)
            break
        served.append(removal.to_dict())
        head = removal.head
    if tell is not None:
        tell("served")
    return _write(run, head, {"trained": trained, "requests": served, "refusal": refusal})


def remove_certified(run: Run, changes: Changes) -> tuple[Removal, dict[str, Any]]:
    """Remove rows from the head of a run, and write head and account anew.

    Raises:
        UncertifiedError: rows are to be relabelled.
        FolderError: the run has no head yet.
        BudgetSpentError: the budget does not cover it; the files stay as they are.
    """
    if changes.relabelled:
        raise UncertifiedError(
            f"{len(changes.relabelled)} rows are to be relabelled; a certified head removes rows only: remove them, or "
            "train a new head on the corrected labels"
        )
    facts = run.read(ACCOUNT_FILE, "certified removal")
    head = CertifiedHead.load(run.folder / HEAD_FILE, run.data)
    removal = head.remove(changes.on(head.rows).removed, steps=_section(run).steps)
    facts["requests"].append(removal.to_dict())
    return removal, _write(run, removal.head, {key: facts[key] for key in ("trained", "requests", "refusal")})


def _write(run: Run, head: CertifiedHead, facts: dict[str, Any]) -> dict[str, Any]:
    digest = head.save(run.folder / HEAD_FILE, recipe=(run.recipe.name, run.recipe.text))
    now = {
        "rows": len(head.rows),
        "removed": len(head.removed),
        "test_accuracy": head.accuracy(run.test),
        **head.account(),
        "statement": head.statement(),
        "digest": digest,
    }
    run.write(ACCOUNT_FILE, {**facts, "now": now})
    return {"format": FORMAT, **facts, "now": now}


def _requests(rows: Rows, section: CertifiedSection) -> list[list[str]]:
    """Return the ids of each request, at most as many as leave one row."""
    order = [rows.ids[k] for k in permutation(section.request_seed, rows.ids, "requests")]
    found: list[list[str]] = []
    at = 0
    while len(found) < section.most:
        size = section.requests[len(found) % len(section.requests)]
        if at + size >= len(order):
            break
        found.append(order[at : at + size])
        at += size
    return found


def _section(run: Run) -> CertifiedSection:
    if run.recipe.certified is None:
        raise InputError(f"recipe {run.recipe.name!r} is uncertified: it has no section [certified]")
    if run.device is not None:
        raise InputError(f"a certified head is computed in float64 on the CPU; leave out --device {run.device}")
    return run.recipe.certified
