"""Membership audits, and evidence beside verdicts: ``python -m benchmarks.membership [CASE ...]``.

Cases as in ``CASES``; all by default. ``--recipe`` names another recipe than mnist5k-remove; with ``--folder`` finished
shadow models are kept there.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy import stats
from torch import nn

from benchmarks.setting import Bars, Setting, threads
from unlearn.detect import self_influence
from unlearn.repair import Changes, Edit, apply_changes
from unlearn.repair.rivals import RIVALS
from unlearn.verification import MembershipAudit, References, evidence, verify
from unlearn.verification.attacks import Read
from unlearn.verification.membership import audit_signals, same_edit
from unlearn.verification.shadows import Shadows, train_shadows
from unlearn.verification.signals import Signals, read_signals

SEED = 0
NEVER_SAW = 24
SHOWN_UNSEEN = 4
SHADOWS = 8
UNLEARNED = 4
REFERENCES = 5


def as_detected(setting: Setting) -> Changes:
    """Return the rows that the recipe removes."""
    return setting.found("remove")


def flipped(setting: Setting) -> Changes:
    """Return 20 random mislabelled rows."""
    return setting.flipped(20)


def memorised(setting: Setting) -> Changes:
    """Return the 20 rows of the largest self-influence."""
    model, record, _ = setting.trained
    scores = self_influence(model, setting.data, weight_decay=record.weight_decay)
    return Changes(removed=tuple(row for row, _ in scores.top(20)))


def random(setting: Setting) -> Changes:
    """Return 20 random rows."""
    return Changes(removed=setting.data.sample(20, SEED, "membership").ids)


@dataclass(frozen=True)
class Case:
    """Rows that are removed.

    Attributes:
        what: the rows, in words.
        changes: the rows.
        budget: of the edit.
        unlearned: shadow models that learn and unlearn.
    """

    what: str
    changes: Callable[[Setting], Changes]
    budget: float
    unlearned: int


CASES = {
    "detected": Case("rows as detected", as_detected, 3.0, UNLEARNED),
    "flipped": Case("20 random mislabelled rows", flipped, 1.0, UNLEARNED),
    "memorised": Case("the 20 rows of the largest self-influence", memorised, 1.0, 0),
    "random": Case("20 random rows", random, 1.0, 0),
}


def models_of(setting: Setting, changes: Changes, edit: Edit) -> dict[str, nn.Module]:
    """Return the models to audit: the edit, what others would do at its cost, and one pushed past forgetting."""
    model, record, _ = setting.trained
    epochs = max(1, round(edit.cost.total))
    asked = {
        "fine-tuned 1 epoch": ("fine-tune", {"epochs": 1.0}),
        f"fine-tuned {epochs} epochs": ("fine-tune", {"epochs": float(epochs)}),
        f"replayed {epochs} epochs": ("replay", {"epochs": float(epochs)}),
        "gradient ascent": ("gradient ascent", {"passes": 10 / math.ceil(len(changes.ids) / 128), "lr": 0.01}),
    }
    rivals = {
        name: RIVALS[rival](model, setting.data, changes, record, setting=options).model
        for name, (rival, options) in asked.items()
    }
    return {"unedited": model, "edited": edit.model, **rivals}


def audit_case(recipe: str, name: str, case: Case, folder: str | None) -> None:
    """Print the audits of one case, and evidence beside verdicts."""
    setting = Setting.of(recipe, SEED)
    model, record, _ = setting.trained
    changes = case.changes(setting)
    edit = apply_changes(model, setting.data, changes, record=record, budget=case.budget)
    counts = {"never": SHADOWS + NEVER_SAW, "learned": SHADOWS, "unlearned": case.unlearned}
    shadows = train_shadows(
        model,
        setting.data,
        changes,
        record,
        counts=counts,
        repair=same_edit(edit),
        repair_name=f"{edit.method} {edit.budget} {edit.layers}",
        folder=None if folder is None else Path(folder) / name,
        tell=lambda price: print(f"{name}: {price}", file=sys.stderr),
    )
    rows = setting.data.only(changes.ids)

    def read(models: list[nn.Module] | tuple[nn.Module, ...]) -> list[Signals]:
        return [read_signals(one, rows) for one in models]

    never, learned, unlearned = read(shadows.never), read(shadows.learned), read(shadows.unlearned)
    kinds = {"never": never[:SHADOWS], "learned": learned}
    audits: dict[str, MembershipAudit] = {}
    for who, one in models_of(setting, changes, edit).items():
        own = unlearned if who == "edited" else []
        audits[who] = audit_signals(Read(read_signals(one, rows), **kinds, unlearned=own), rows)
    unseen = [audit_signals(Read(one, **kinds, unlearned=[]), rows) for one in never[SHADOWS:]]
    wrong = int((rows.labels != rows.truth).sum())
    print(f"\n## {name}: {case.what}\n")
    print(
        f"{len(rows)} rows, {wrong} of them mislabelled; edit {edit.method}, budget {case.budget:g}, cost "
        f"{edit.cost.total:.3g} epochs. Shadow models: {SHADOWS} without the rows, {SHADOWS} with them, "
        f"{case.unlearned} learned and unlearned; {NEVER_SAW} further retrains are models that never saw the rows "
        f"({SHOWN_UNSEEN} of them shown).\n"
    )
    print_rates(audits, unseen)
    if case.unlearned:
        print_unlearning(audits["edited"])
    print_bars(audits, unseen)
    if name in ("detected", "flipped"):
        print_evidence(setting, edit, shadows, models_of(setting, changes, edit))


def cell(audit: MembershipAudit, attack: str, group: str = "all", models: str = "audited") -> str:
    """Return true positive rate and interval of an attack, in percent."""
    found = line(audit, attack, group, models)
    if found is None:
        return "-"
    return f"{100 * found['tpr']:.0f} ({100 * found['lower']:.0f} to {100 * found['upper']:.0f})"


def line(audit: MembershipAudit, attack: str, group: str = "all", models: str = "audited") -> dict | None:
    """Return a line of the audit's table, or None."""
    wanted = (group, attack, models)
    return next((one for one in audit.table if (one["group"], one["attack"], one["models"]) == wanted), None)


def print_rates(audits: dict[str, MembershipAudit], unseen: list[MembershipAudit]) -> None:
    """Print true positive rates of every model."""
    attacks = ("lira", "lira-offline", "less-confident", "loss", "gradient-norm")
    print(
        "| model | audit | " + " | ".join(f"{one}, TPR %" for one in attacks) + " | lira on the most memorised | "
        "AUC lira | remembered | over-forgotten |"
    )
    print("|---" * (len(attacks) + 6) + "|")
    named = {**audits, **{f"never saw, {k}": audit for k, audit in enumerate(unseen[:SHOWN_UNSEEN], 1)}}
    for who, audit in named.items():
        cells = [cell(audit, attack) for attack in attacks]
        flags = [len(audit.flagged(flag)) for flag in ("still remembered", "over-forgotten")]
        auc = (line(audit, "lira") or {})["auc"]
        memory = cell(audit, "lira", "memorised")
        print(f"| {who} | {audit.outcome} | {' | '.join(cells)} | {memory} | {auc:.2f} | {flags[0]} | {flags[1]} |")
    any_audit = audits["unedited"]
    cells = [cell(any_audit, attack, models="learned") for attack in attacks]
    memory, auc = (
        cell(any_audit, "lira", "memorised", "learned"),
        (line(any_audit, "lira", models="learned") or {})["auc"],
    )
    print(f"| models that learned the rows (power) | - | {' | '.join(cells)} | {memory} | {auc:.2f} | - | - |")


def print_unlearning(audit: MembershipAudit) -> None:
    """Print U-LiRA and epsilon."""
    print("\n| U-LiRA on | TPR % | on the most memorised | AUC |")
    print("|---|---|---|---|")
    for models in ("audited", "unlearned"):
        auc = (line(audit, "u-lira", models=models) or {})["auc"]
        on_all, on_memorised = (cell(audit, "u-lira", group, models) for group in ("all", "memorised"))
        print(f"| {models} | {on_all} | {on_memorised} | {auc:.2f} |")
    print("\n| epsilon of models that | median | by chance | mean | rows at the cap | N | cap | forgetting quality |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, one in audit.epsilon.items():
        print(
            f"| {kind} | {one['median']:.2f} | {one['by_chance']:.2f} | {one['mean']:.2f} | {one['at_cap']} of "
            f"{len(audit.rows)} | {one['models'][0]}, {one['models'][1]} | {one['cap']:.2f} | {one['quality']:.3f} |"
        )


def print_bars(audits: dict[str, MembershipAudit], unseen: list[MembershipAudit]) -> None:
    """Print what must hold of an audit."""
    bars = Bars()
    for attack in ("lira", "lira-offline", "less-confident"):
        lines = [line(audit, attack) or {} for audit in unseen]
        within = sum(one["lower"] <= one["fpr"] <= one["upper"] for one in lines)
        what = f"models that never saw the rows, FPR within the interval of TPR, {attack}"
        bars.hold(f"{what}: in all", within, len(unseen), at_least=True)
        allowed = int(stats.binom.ppf(0.05, len(unseen), 0.95))
        bars.hold(f"{what}: as 95 % intervals allow", within, allowed, at_least=True)
        mean = sum(one["tpr"] for one in lines) / len(lines)
        print(f"\nMean TPR on models that never saw the rows, {attack}: {mean:.1%} at an FPR of {lines[0]['fpr']:.1%}.")
    bars.hold("of them failed by the audit", sum(audit.outcome == "fail" for audit in unseen), 0)
    bars.hold(
        "unedited model, lower bound of TPR, lira",
        (line(audits["unedited"], "lira") or {})["lower"],
        0.05,
        at_least=True,
    )
    share = len(audits["gradient ascent"].flagged("over-forgotten")) / len(audits["gradient ascent"].rows)
    bars.hold("gradient ascent, share of rows flagged over-forgotten", share, 0.5, at_least=True)
    print(bars)


def print_evidence(setting: Setting, edit: Edit, shadows: Shadows, models: dict[str, nn.Module]) -> None:
    """Print evidence beside the verdict for each model."""
    place = {row: i for i, row in enumerate(setting.trained[2].ids)}
    logits = setting.trained[2].logits
    looks_like = {row: int(logits[place[row]].argmax()) for row in edit.changes.ids}
    references = References(None, tuple(shadows.never[:REFERENCES]))
    print(
        f"\nEvidence without retraining beside the verdict with {REFERENCES} retrains. AUC: phi of changed rows "
        "against held-out rows of their kind; self-influence likewise; slope: actual on foretold change of logits.\n"
    )
    print("| model | verdict | evidence | AUC | p | AUC of self-influence | slope changed | cosine changed, kept |")
    print("|---|---|---|---|---|---|---|---|")
    for who, model in {**models, "independent retrain": shadows.never[SHADOWS]}.items():
        edited = replace(edit, model=model)
        verdict = verify(edited, test=setting.test, references=references)
        found = evidence(edited, held_out=setting.test, looks_like=looks_like)
        phi, influence = (
            next(one for one in found.against_held_out if one["model"] == "edited" and one["quantity"] == quantity)
            for quantity in ("phi", "self-influence")
        )
        changed, kept = (
            next(one for one in found.prediction if one["group"] == group) for group in ("changed", "kept")
        )
        print(
            f"| {who} | {verdict.outcome} | {found.reading} | {phi['auc']:.2f} ({phi['lower']:.2f} to "
            f"{phi['upper']:.2f}) | {phi['p']:.1g} | {influence['auc']:.2f} | {changed['slope']:.2f} | "
            f"{changed['cosine']:.2f}, {kept['cosine']:.2f} |"
        )


def main() -> None:
    """Print the tables of the cases asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=[])
    parser.add_argument("--folder")
    parser.add_argument("--recipe", default="mnist5k-remove")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    options = "" if asked.recipe == "mnist5k-remove" else f" --recipe {asked.recipe}"
    print(f"# python -m benchmarks.membership{options}{''.join(f' {case}' for case in asked.cases)}\n")
    print(
        f"{threads()}; {asked.recipe}, 10 % of the training labels flipped, seed {SEED}. True positive rates at 1 % "
        "false positives in percent, with 95 % Clopper-Pearson intervals that take rows as independent. The most "
        "memorised rows are the quarter with the largest gap of phi between models with and without them. Flagged "
        "(remembered, over-forgotten): rows that stand out on either side at 5 % false discoveries."
    )
    for name in asked.cases or CASES:
        audit_case(asked.recipe, name, CASES[name], asked.folder)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
