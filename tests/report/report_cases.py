"""A small report with every section, and ways to change one leaf of it."""

from __future__ import annotations

import copy
from html.parser import HTMLParser


def measured(group, measure, values, floor=None):
    models = ("unedited", "edited", "fine-tuned", "replayed", "coupled", "independent")
    for model, value in zip(models, values, strict=False):
        yield {
            "group": group,
            "measure": measure,
            "model": model,
            "reference": "labels" if measure == "accuracy" else "coupled",
            "value": value,
            "floor": floor,
            "ratio": None if floor is None or value is None else value / floor,
        }


def bounds(group, r, lower, upper):
    unedited = {"unedited_r": 3.61, "unedited_lower": 2.93, "unedited_upper": 4.42}
    return {"group": group, "r": r, "lower": lower, "upper": upper, "rows": 425, "references": 5, **unedited}


def top_row(rank, acted=True):
    row = {"rank": rank, "id": f"mnist5k-{rank:04d}", "score": 7.1 - rank, "given": 3, "suggested": 8}
    return {**row, "predicted_before": 3, "predicted_after": 8, "acted": acted}


def changed_row(rank, becomes=8, **figures):
    row = {"id": f"mnist5k-{rank:04d}", "given": 3, "suggested": 8, "becomes": becomes}
    return {**row, "predicted_before": 3, "predicted_after": 8, **figures}


def remembered_row(rank):
    return changed_row(rank, z=5.13 - rank / 100, phi_unedited=2.71, phi_edited=1.93, phi_retrained=-4.12)


def part(name, worse):
    accuracies = {"unedited": 0.911, "edited": 0.722, "independent": 0.913, "spread": 0.0112, "change": -0.191}
    distances = {"phi_error": 1.37, "phi_floor": 0.621, "kl": 0.05, "worse": worse}
    return {"group": "test", "kind": "class", "part": name, "rows": 98, **accuracies, **distances}


def rates(group, attack, models, tpr):
    bounds = {"tpr": tpr, "lower": tpr - 0.0523, "upper": tpr + 0.0617}
    around = {"auc": 0.873, "fpr": 0.0099, "fpr_upper": 0.0147, "rows": 431, "never": 3433}
    return {"group": group, "attack": attack, "models": models, **bounds, **around}


def flagged_row(rank):
    row = {"id": f"mnist5k-{rank:04d}", "label": 3, "phi": -2.31, "never_mean": -8.11, "never_std": 0.731}
    return {**row, "learned_mean": 0.431, "learned_std": 0.642, "p": 0.00231, "flag": "still remembered"}


AUDIT = {
    "outcome": "undecided",
    "reason": "too few rows to say more: lira finds 5% of 20 rows",
    "fpr": 0.01,
    "tolerance": 0.2,
    "models": {"never": 8, "learned": 9, "unlearned": 4},
    "remembered": 48,
    "over_forgotten": 1,
    "table": [
        rates("all", "lira", "audited", 0.374),
        rates("all", "lira", "learned", 0.912),
        rates("all", "less-confident", "audited", 0.112),
    ],
    "beside": [
        {"model": "unedited", "outcome": "fail", "remembered": 133, "over_forgotten": 2}
        | {"table": [rates("all", "lira", "audited", 0.8877)]}
    ],
    "epsilon": {
        "unlearned": {"median": 1.79, "by_chance": 1.59, "mean": 1.77, "largest": 1.791, "at_cap": 423}
        | {"cap": 1.792, "models": [6, 11], "delta": 0.0, "quality": 0.127}
    },
    "rows": 430,
    "flagged": [flagged_row(7)],
    "notes": ["no models learned and unlearned"],
}

REPORT = {
    "format": 1,
    "recipe": {"name": "mnist5k-relabel", "description": "Relabel digits.", "text": "[data]\n", "sha256": "9f" * 32},
    "versions": {"unlearn": "0.1.0", "torch": "2.5.1", "python": "3.11"},
    "data": {
        "name": "mnist5k",
        "rows": 4000,
        "test_rows": 1000,
        "classes": 10,
        "fingerprint": "ab" * 32,
        "noise": {"kind": "symmetric", "rate": 0.1, "rows": 400},
    },
    "model": {"name": "mlp", "options": {"hidden": [512, 256], "activation": "relu"}, "parameters": 535818},
    "training": {
        "optimizer": "sgd",
        "epochs": 15,
        "steps": 480,
        "horizon": 240.0,
        "snapshots": [0, 32, 64],
        "test_accuracy": 0.894,
    },
    "detection": {
        "method": "margin-trajectory",
        "scores": [
            {"method": "margin-trajectory", "auroc": 0.996, "average_precision": 0.97, "cost_epochs": 0.0},
            {"method": "self-influence", "auroc": None, "average_precision": None, "cost_epochs": 1.26},
        ],
        "cutoff": {"how": "mixture", "count": 425, "threshold": 0.312, "means": [-8.1, 4.4], "weights": [0.9, 0.1]},
        "quality": {"acted": 425, "mislabelled": 400, "precision": 0.89, "recall": 0.94, "suggestions_right": 0.8},
        "histogram": {"edges": [-12.0, -4.0, 0.5, 8.0], "counts": [3100, 480, 420]},
        "top": [top_row(1), top_row(2, acted=False)],
        "found": {
            "checked": [0, 600, 1200],
            "mislabelled": 403,
            "curves": {"margin-trajectory": [0, 377, 391], "self-influence": [0, 241, 333]},
        },
    },
    "changed": {"rows": 427, "listed": [changed_row(3), changed_row(4, becomes=None)]},
    "remembered": {"rows": 17, "listed": [remembered_row(5), remembered_row(6)]},
    "edit": {
        "method": "rewind-newton-replay",
        "action": "relabel",
        "rows": 425,
        "removed": 0,
        "relabelled": 425,
        "budget": 3.0,
        "replay_epochs": 3.0,
        "start_step": 384,
        "steps": [{"damping": 0.0083, "iterations": 3, "breakdown": None, "predicted": -0.0321, "accepted": True}],
        "cost": {"factors": 0.26, "solve": 0.62, "replay": 3.0, "total": 3.88},
        "before": {"changed_phi": 1.2, "kept_accuracy": 0.998},
        "after": {"changed_phi": -5.9, "kept_accuracy": 0.996},
        "notes": ["the snapshot was fitted for this edit"],
    },
    "verification": {
        "references": 5,
        "tolerance": 1.5,
        "costs": {"unedited": 0.0, "edited": 3.88, "fine-tuned": 4.02, "replayed": 4.03, "retrained": 15.02},
        "table": [
            *measured("changed", "phi_error", (4.41, 1.92, 2.51, 1.83), 1.22),
            *measured("changed", "loss", (2.92, 0.212, 1.12, 0.41, 0.181, 0.192), 0.0212),
            *measured("changed", "accuracy", (0.31, 0.942, 0.51, 0.88, 0.9435, 0.9425)),
            *measured("changed", "kl", (2.41, 0.131, 1.2, 0.34), 0.21),
            *measured("test", "phi_error", (2.8, 1.31, 2.1, 1.25), 1.5),
            *measured("test", "change_cosine", (0.0, 0.9, 0.52, 0.87), 0.88),
        ],
    },
    "verdict": {
        "format": 1,
        "outcome": "fail",
        "reason": "r is at least 1.92 on changed rows, above the tolerance 1.5",
        "tolerance": 1.5,
        "notes": ["the retrains are the user's own"],
        "subgroups": [part("3", True), part("4", False)],
        "weights": [{"model": "edited", "reference": "coupled", "value": 6.13, "floor": 9.14}],
        "table": [bounds("changed", 2.4, 1.92, 3.04), bounds("test", 0.97, 0.81, None)],
    },
    "audit": AUDIT,
    "evidence": {
        "reading": "still remembered",
        "reason": "phi of the changed rows is above that of held-out rows",
        "cost_epochs": 4.21,
        "against_held_out": [
            {"quantity": "phi", "model": "edited", "changed": -3.92, "held_out": -4.81, "auc": 0.653}
            | {"lower": 0.631, "upper": 0.677, "p": 0.00027}
        ],
        "prediction": [{"group": "changed", "predicted": 3.83, "actual": 2.71, "cosine": 0.551, "slope": 0.2312}],
        "notes": ["the damping is a tenth of the mean eigenvalue"],
    },
    "checkpoint": {
        "original": {"file": "original.safetensors", "digest": "1c" * 32},
        "edited": {"file": "edited.safetensors", "digest": "d4" * 32},
    },
    "limits": ["The edit approximates retraining.", "A detector finds suspects."],
}


def leaves(value, path=()):
    """Yield the path and value of everything that is neither a dictionary nor a list."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path, value


def with_leaf(report, path, value):
    changed = copy.deepcopy(report)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.pieces = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.pieces.append(data)

    @property
    def text(self):
        return "".join(self.pieces)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]
