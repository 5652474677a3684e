"""What a user could do instead of a repair, by name, under one interface; measured beside every repair."""

from collections.abc import Mapping

from unlearn.repair.rivals.compressed_retrain import COMPRESSED_RETRAIN
from unlearn.repair.rivals.dampening import SSD
from unlearn.repair.rivals.fine_tune import FINE_TUNE
from unlearn.repair.rivals.gradient_ascent import GRADIENT_ASCENT
from unlearn.repair.rivals.influence_step import INFLUENCE_STEP
from unlearn.repair.rivals.neggrad_plus import NEGGRAD_PLUS
from unlearn.repair.rivals.plain_replay import PLAIN_REPLAY
from unlearn.repair.rivals.random_labels import RANDOM_LABELS
from unlearn.repair.rivals.rival import Rival, RivalEdit

_ALL = (
    FINE_TUNE,
    COMPRESSED_RETRAIN,
    PLAIN_REPLAY,
    GRADIENT_ASCENT,
    RANDOM_LABELS,
    NEGGRAD_PLUS,
    SSD,
    INFLUENCE_STEP,
)
RIVALS: Mapping[str, Rival] = {rival.name: rival for rival in _ALL}

__all__ = ["RIVALS", "Rival", "RivalEdit"]
