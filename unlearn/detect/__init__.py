"""Finding suspicious rows: one file for each score, the cut-off, suggested labels, and quality where truth is known."""

from unlearn.detect.cutoff import Cutoff, count_cutoff, estimate_cutoff
from unlearn.detect.gif import gif_scores
from unlearn.detect.influence import influence
from unlearn.detect.loss import loss
from unlearn.detect.margins import margin_trajectory
from unlearn.detect.quality import decision_quality, ranking_quality, wrong_rows
from unlearn.detect.scores import Scores, read_column
from unlearn.detect.self_influence import self_influence
from unlearn.detect.suggestions import suggest_labels

__all__ = [
    "Cutoff",
    "Scores",
    "count_cutoff",
    "decision_quality",
    "estimate_cutoff",
    "gif_scores",
    "influence",
    "loss",
    "margin_trajectory",
    "ranking_quality",
    "read_column",
    "self_influence",
    "suggest_labels",
    "wrong_rows",
]
