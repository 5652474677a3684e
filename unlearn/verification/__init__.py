"""Verification: references, distances with their floor, the verdict, and evidence where nothing can be retrained."""

from unlearn.verification.compare import verify
from unlearn.verification.distances import Group, measure
from unlearn.verification.evidence import Evidence, evidence
from unlearn.verification.references import Price, References, given_references, train_references
from unlearn.verification.verdict import TOLERANCE, GroupPhi, Verdict, decide

__all__ = [
    "TOLERANCE",
    "Evidence",
    "Group",
    "GroupPhi",
    "Price",
    "References",
    "Verdict",
    "decide",
    "evidence",
    "given_references",
    "measure",
    "train_references",
    "verify",
]
