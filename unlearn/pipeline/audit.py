"""The membership audit of a run's edit."""

from __future__ import annotations

from collections.abc import Callable

from unlearn.atomic import write_atomically
from unlearn.pipeline.rivals import rivals_beside
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
    """Audit the run's edit beside the unedited model and rivals at its cost, and write ``audit.json``.

    Shadow models are kept beside the verdict's references. A report of the run without this audit is taken away.
    """
    edit = run.edit()
    found = membership_audit(
        edit,
        shadows=shadows,
        unlearned=unlearned,
        rivals={name: rival.model for name, rival in rivals_beside(run, edit).items()},
        folder=run.folder / "references",
        processes=processes,
        tell=tell,
    )
    run.take_away("report.json", "report.html")
    write_atomically(run.folder / AUDIT_FILE, found.to_json().encode())
    return found
