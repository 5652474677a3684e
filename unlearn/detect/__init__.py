"""Finding suspicious rows: one file for each score, the cut-off, suggested labels, and quality where truth is known."""

from unlearn.detect.cutoff import Cutoff, count_cutoff, estimate_cutoff
from unlearn.detect.gif import gif_scores
from unlearn.detect.influence import influence
from unlearn.detect.loss import loss
from unlearn.detect.margins import margin_trajectory
from unlearn.detect.out_of_sample import out_of_sample, out_of_sample_logits
from unlearn.detect.outlier_gradients import outlier_gradients
from unlearn.detect.quality import decision_quality, found_curve, ranking_quality, wrong_rows
from unlearn.detect.scores import Scores, read_column
from unlearn.detect.self_influence import self_influence
from unlearn.detect.suggestions import suggest_labels
from unlearn.detect.tracin import tracin

__all__ = [
    "Cutoff",
    "Scores",
    "count_cutoff",
    "decision_quality",
    "estimate_cutoff",
    "found_curve",
    "gif_scores",
    "influence",
    "loss",
    "margin_trajectory",
    "out_of_sample",
    "out_of_sample_logits",
    "outlier_gradients",
    "ranking_quality",
    "read_column",
    "self_influence",
    "suggest_labels",
    "tracin",
    "wrong_rows",
]
