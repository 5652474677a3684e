"""Recipe to stages, in one run folder."""

from unlearn.pipeline.run import Run
from unlearn.pipeline.stages import SCORE_COSTS, run_stages, suggestions_of, verify_stage, write_edit, write_scores

__all__ = ["SCORE_COSTS", "Run", "run_stages", "suggestions_of", "verify_stage", "write_edit", "write_scores"]
