"""The membership audit of a run's edit."""

from __future__ import annotations

from collections.abc import Callable

from unlearn.atomic import write_atomically
from unlearn.pipeline.run import Run
from unlearn.verification import MembershipAudit, Price, membership_audit
from unlearn.verification.membership import SHADOWS
from unlearn.verification.processes import Processes

AUDIT_FILE = "audit.json"


def audit_run(
    run: Run,
    shadows: int = SHADOWS,
    *,
    unlearned: int | None = None,
    processes: Processes = 1,
    tell: Callable[[Price], None] | None = None,
) -> MembershipAudit:
    """Audit the run's edit, and write ``audit.json``; shadow models are kept beside the verdict's references."""
    found = membership_audit(
        run.edit(),
        shadows=shadows,
        unlearned=unlearned,
        folder=run.folder / "references",
        processes=processes,
        tell=tell,
    )
    write_atomically(run.folder / AUDIT_FILE, found.to_json().encode())
    return found
