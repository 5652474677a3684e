"""Recipe to stages, in one run folder."""

from unlearn.pipeline.certified import remove_certified, run_certified
from unlearn.pipeline.detectors import DETECTORS
from unlearn.pipeline.dry_run import DryRun, dry_run
from unlearn.pipeline.plan import plan_run
from unlearn.pipeline.run import Run
from unlearn.pipeline.stages import (
    check_has_stages,
    edit_units,
    report_stage,
    run_stages,
    stages_of,
    suggestions_of,
    verify_stage,
    write_edit,
    write_scores,
)

__all__ = [
    "DETECTORS",
    "DryRun",
    "Run",
    "check_has_stages",
    "dry_run",
    "edit_units",
    "plan_run",
    "remove_certified",
    "report_stage",
    "run_certified",
    "run_stages",
    "stages_of",
    "suggestions_of",
    "verify_stage",
    "write_edit",
    "write_scores",
]
