"""What others would have made of a run's original at about the cost of its edit."""

from __future__ import annotations

from unlearn.pipeline.run import Run
from unlearn.repair import RIVALS, Edit
from unlearn.repair.rivals.rival import RivalEdit


def rivals_beside(run: Run, edit: Edit) -> dict[str, RivalEdit]:
    """Return fine-tuning and, where the record allows it, plain replay, by name with their epochs.

    There are none for a model without a record, or one that was trained to its optimum.
    """
    record, epochs = edit.record, max(1, round(edit.cost.total))
    if record is None or record.optimizer == "lbfgs":
        return {}
    names = {"fine-tune": f"fine-tuned {epochs}"}
    if record.order is not None and epochs <= run.recipe.train.epochs and 0 in record.snapshots:
        names["replay"] = f"replayed {epochs}"
    return {
        name: RIVALS[rival](
            edit.original,
            edit.data,
            edit.changes,
            record,
            setting={"epochs": epochs},
            seed=run.recipe.train.train_seed + 1,
        )
        for rival, name in names.items()
    }
