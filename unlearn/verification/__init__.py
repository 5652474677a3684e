"""Verification: references, distances with their floor, the verdict, membership audits, and evidence."""

from unlearn.verification.compare import verify
from unlearn.verification.distances import Group, measure
from unlearn.verification.evidence import Evidence, evidence
from unlearn.verification.membership import membership_audit
from unlearn.verification.membership_verdict import MembershipAudit
from unlearn.verification.references import Price, References, given_references, train_references
from unlearn.verification.shadows import Shadows
from unlearn.verification.verdict import TOLERANCE, GroupPhi, Verdict, decide

__all__ = [
    "TOLERANCE",
    "Evidence",
    "Group",
    "GroupPhi",
    "MembershipAudit",
    "Price",
    "References",
    "Shadows",
    "Verdict",
    "decide",
    "evidence",
    "given_references",
    "measure",
    "membership_audit",
    "train_references",
    "verify",
]
