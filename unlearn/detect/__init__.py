"""Finding suspicious rows: one file for each score, the cut-off, suggested labels, and quality where truth is known."""

from unlearn.detect.cutoff import Cutoff, count_cutoff, estimate_cutoff
from unlearn.detect.datamodeling import DatamodelingScore, Datamodels, datamodel_retrains, linear_datamodeling_score
from unlearn.detect.duplicates import duplicate_pairs, duplicate_scores
from unlearn.detect.explain import Explanation, InfluentialRow, explain
from unlearn.detect.gif import gif_scores
from unlearn.detect.gif_exact import gif_exact
from unlearn.detect.harm import harm
from unlearn.detect.influence import influence
from unlearn.detect.layer_influence import layer_harm, layer_self_influence
from unlearn.detect.layer_scores import LayerScores
from unlearn.detect.loss import loss
from unlearn.detect.margins import margin_trajectory
from unlearn.detect.out_of_sample import out_of_sample, out_of_sample_logits
from unlearn.detect.outlier_gradients import outlier_gradients
from unlearn.detect.pseudo_labels import PseudoLabelled, head_and_features, pseudo_label
from unlearn.detect.quality import decision_quality, found_curve, ranking_quality, wrong_rows
from unlearn.detect.scores import Scores, read_column
from unlearn.detect.self_influence import self_influence
from unlearn.detect.shard_files import ScoreShards
from unlearn.detect.shards import score_shards
from unlearn.detect.sketch_index import Sketches, join_sketches
from unlearn.detect.sketches import gradient_sketches
from unlearn.detect.suggestions import suggest_labels
from unlearn.detect.top_influence import TopInfluence, top_influence
from unlearn.detect.tracin import tracin

__all__ = [
    "Cutoff",
    "DatamodelingScore",
    "Datamodels",
    "Explanation",
    "InfluentialRow",
    "LayerScores",
    "PseudoLabelled",
    "ScoreShards",
    "Scores",
    "Sketches",
    "TopInfluence",
    "count_cutoff",
    "datamodel_retrains",
    "decision_quality",
    "duplicate_pairs",
    "duplicate_scores",
    "estimate_cutoff",
    "explain",
    "found_curve",
    "gif_exact",
    "gif_scores",
    "gradient_sketches",
    "harm",
    "head_and_features",
    "influence",
    "join_sketches",
    "layer_harm",
    "layer_self_influence",
    "linear_datamodeling_score",
    "loss",
    "margin_trajectory",
    "out_of_sample",
    "out_of_sample_logits",
    "outlier_gradients",
    "pseudo_label",
    "ranking_quality",
    "read_column",
    "score_shards",
    "self_influence",
    "suggest_labels",
    "top_influence",
    "tracin",
    "wrong_rows",
]
