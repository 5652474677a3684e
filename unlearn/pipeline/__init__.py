"""Recipe to stages, in one run folder."""

from unlearn.pipeline.detectors import DETECTORS
from unlearn.pipeline.run import Run
from unlearn.pipeline.stages import run_stages, suggestions_of, verify_stage, write_edit, write_scores

__all__ = ["DETECTORS", "Run", "run_stages", "suggestions_of", "verify_stage", "write_edit", "write_scores"]
