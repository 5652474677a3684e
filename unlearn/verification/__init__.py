"""Verification: references, distances with their floor, and the verdict."""

from unlearn.verification.compare import verify
from unlearn.verification.distances import Group, measure
from unlearn.verification.references import Price, References, given_references, train_references
from unlearn.verification.verdict import TOLERANCE, GroupPhi, Verdict, decide

__all__ = [
    "TOLERANCE",
    "Group",
    "GroupPhi",
    "Price",
    "References",
    "Verdict",
    "decide",
    "given_references",
    "measure",
    "train_references",
    "verify",
]
