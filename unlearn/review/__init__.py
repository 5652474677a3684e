"""A page on which a person judges flagged rows; every decision is on the disk before the next row is shown."""

from unlearn.review.journal import Journal
from unlearn.review.opening import open_review
from unlearn.review.review import FlaggedRow, Review
from unlearn.review.server import ReviewServer
from unlearn.review.shown import Shown

__all__ = ["FlaggedRow", "Journal", "Review", "ReviewServer", "Shown", "open_review"]
