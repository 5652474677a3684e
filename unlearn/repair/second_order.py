"""How a request changes the Hessian of the training objective: the second-order term of group influence.

The objective on the path from the old data to the new is L + e P with P = L_new - L_old, e from 0 to 1. To second
order in e, third derivatives of the loss left out (arXiv 1911.00418, eq. 12 and 15),

    theta = theta_0 + s - H^-1 (P'' s),    s = H^-1 r,    H = L_old'' with its damping, r as for every edit

For removed rows P'' = p / (1 - p) (L_old'' - mean of the rows' Hessians) with p = m / n, which gives the factors
(1 - 2 p) / (1 - p)^2 and 1 / (1 - p)^2 of the paper. For relabelled rows P'' is the mean over n of the new loss's
Hessian minus the old one's. These are true Hessians: the Gauss-Newton matrix of the softmax loss knows no labels, so
with it the term of relabelled rows would be 0.
"""

from __future__ import annotations

import torch

from unlearn.curvature import Vector, add_scaled
from unlearn.curvature.restricted import Operator
from unlearn.curvature.vectors import zeros_like
from unlearn.inputs import call_model
from unlearn.modes import evaluation, plain_attention
from unlearn.repair.objective import EditedObjective

HESSIAN_PRODUCT_COST = 6


def change_of_hessian(objective: EditedObjective, weights: Vector, data_term: Operator, vector: Vector) -> Vector:
    """Return P'' v at these weights.

    Args:
        objective: of the request; its cost grows by 6 for each changed row.
        weights: where the Hessians are taken.
        data_term: L_old'' without weight decay or damping; used only if rows are removed.
        vector: v, of the objective's parameters.
    """
    left = len(objective.edited)
    total = zeros_like(vector)
    if objective.changes.removed:
        total = add_scaled(total, len(objective.data) / left - 1, data_term.matvec(vector))
    return add_scaled(total, -1 / left, _changed_rows(objective, weights, vector))


def _changed_rows(objective: EditedObjective, weights: Vector, vector: Vector) -> Vector:
    """Return (sum of the old losses' Hessians - sum of the new ones') v over the changed rows."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    total = zeros_like(vector)
    removed, new_labels = len(objective.changes.removed), None
    if objective.changes.relabelled:
        new_labels = objective.edited.only(objective.changes.relabelled).labels
    device = next(iter(weights.values())).device
    with evaluation(objective.model), plain_attention(), torch.enable_grad():
        for positions, inputs, labels in objective.changed.batches(objective.batch_size, device):
            outputs = call_model(objective.model, inputs, leaves)
            loss = objective.task.loss(outputs, labels).sum()
            kept = positions >= removed
            if new_labels is not None and kept.any():
                new = new_labels[positions[kept] - removed].to(device)
                loss = loss - objective.task.loss(outputs[kept.to(device)], new).sum()
            first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
            slope = torch.stack([(g * vector[name]).sum() for g, name in zip(first, leaves, strict=True)]).sum()
            if slope.requires_grad:
                parts = torch.autograd.grad(slope, list(leaves.values()), materialize_grads=True)
                total = {name: total[name] + part for name, part in zip(leaves, parts, strict=True)}
    objective.cost += HESSIAN_PRODUCT_COST * len(objective.changed)
    return total
