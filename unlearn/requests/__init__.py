"""Deletion requests: from a letter to an edited, verified, released model and a record that can be audited."""

from unlearn.requests.audit import audit, audit_passes
from unlearn.requests.certificate_check import read_certificate, verify_certificate
from unlearn.requests.decisions import approve, refuse, rollback
from unlearn.requests.desk import Desk
from unlearn.requests.export import export_events, export_requests
from unlearn.requests.heads import export_head, read_head
from unlearn.requests.keys import Keys, make_keys, read_public_key
from unlearn.requests.process import FAULT_POINTS, process
from unlearn.requests.purge import PurgePlan, plan_purge, purge
from unlearn.requests.rehearsal import Rehearsal, rehearsal_keys, rehearse
from unlearn.requests.selection import content_hashes
from unlearn.requests.shown import shown
from unlearn.requests.state import Batch, Request, State, request_name, request_number
from unlearn.requests.submit import Submission, cancel, submit

__all__ = [
    "FAULT_POINTS",
    "Batch",
    "Desk",
    "Keys",
    "PurgePlan",
    "Rehearsal",
    "Request",
    "State",
    "Submission",
    "approve",
    "audit",
    "audit_passes",
    "cancel",
    "content_hashes",
    "export_events",
    "export_head",
    "export_requests",
    "make_keys",
    "plan_purge",
    "process",
    "purge",
    "read_certificate",
    "read_head",
    "read_public_key",
    "refuse",
    "rehearsal_keys",
    "rehearse",
    "request_name",
    "request_number",
    "rollback",
    "shown",
    "submit",
    "verify_certificate",
]
