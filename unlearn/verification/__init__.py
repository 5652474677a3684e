"""Verification: references, distances with their floor, the verdict, membership audits, and evidence."""

from unlearn.verification.compare import compare_models, verify
from unlearn.verification.evidence import Evidence, evidence
from unlearn.verification.measures import Compared, Group, measure, measure_weights
from unlearn.verification.membership import membership_audit
from unlearn.verification.membership_verdict import MembershipAudit
from unlearn.verification.references import Price, References, given_references, train_references
from unlearn.verification.retrain_distances import Measures, RetrainDistances
from unlearn.verification.row_files import read_groups, read_ids
from unlearn.verification.row_table import RowTable, row_table
from unlearn.verification.shadows import Shadows
from unlearn.verification.subgroups import measure_subgroups
from unlearn.verification.verdict import TOLERANCE, GroupPhi, Verdict, decide

__all__ = [
    "TOLERANCE",
    "Compared",
    "Evidence",
    "Group",
    "GroupPhi",
    "Measures",
    "MembershipAudit",
    "Price",
    "References",
    "RetrainDistances",
    "RowTable",
    "Shadows",
    "Verdict",
    "compare_models",
    "decide",
    "evidence",
    "given_references",
    "measure",
    "measure_subgroups",
    "measure_weights",
    "membership_audit",
    "read_groups",
    "read_ids",
    "row_table",
    "train_references",
    "verify",
]
