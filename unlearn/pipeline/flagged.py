"""What a person needs to judge each flagged row: ``flagged.json``, written when rows are detected.

Beside each row stand the training rows of the largest influence on it, through the last layer alone: influence through
all layers would cost as many passes over the weights as there are flagged rows, through the last one pass over the rows
serves all of them. ``unlearn explain RUN --query ID`` takes all layers for one row.
"""

from __future__ import annotations

import math
from typing import Any

from unlearn import detect
from unlearn.curvature.layers import last_called
from unlearn.detect.suggestions import rank_labels
from unlearn.errors import UnsupportedLayerError
from unlearn.pipeline.detectors import FIT_COST
from unlearn.pipeline.run import Run, horizon_damping
from unlearn.predict import predict
from unlearn.repair.chosen_layers import restricted

NAME = "flagged.json"
_QUERY_NUMBERS = 2**25


def write_flagged(run: Run, scores: detect.Scores, flagged: tuple[str, ...]) -> None:
    """Write the flagged rows, the most suspicious first: labels given, suggested and predicted, and their neighbours.

    Args:
        run: with a trained original.
        scores: the score that decided.
        flagged: ids of the rows beyond the cut-off.
    """
    value = dict(zip(scores.ids, scores.values.tolist(), strict=True))
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {"layer": None, "cost_epochs": 0.0, "note": "no row was flagged"}
    if flagged:
        data = run.data.only(flagged)
        logits = predict(run.original[0], data)
        ranked = rank_labels(data, trajectory=run.trajectory, logits=logits)
        sure, predicted = logits.softmax(1).max(1)
        beside, facts = _neighbours(run, flagged)
        columns = zip(flagged, data.labels.tolist(), predicted.tolist(), sure.tolist(), strict=True)
        rows = [
            {
                "id": row,
                "score": value[row],
                "given": given,
                "suggested": list(ranked[row]),
                "predicted": guess,
                "probability": probability,
                **beside.get(row, {"alike": [], "against": []}),
            }
            for row, given, guess, probability in columns
        ]
    run.write(NAME, {"method": scores.method, "data": run.data.fingerprint, "neighbours": facts, "rows": rows})


def read_flagged(run: Run) -> dict[str, Any]:
    """Read the flagged rows; of a run whose rows were detected by an older release, find what is missing and keep it.

    Raises:
        FolderError: the stage ``detect`` has not run, or a file is damaged.
    """
    if not (run.folder / NAME).exists():
        found = run.read("detection.json", "detect")
        scores = detect.Scores.load(run.folder / f"scores-{found['method']}.csv")
        write_flagged(run, scores, tuple(found["acted"]))
    return run.read(NAME, "detect")


def _neighbours(run: Run, flagged: tuple[str, ...]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return for each flagged row the rows that taught the model the same and otherwise, and what that took."""
    wanted = min(run.recipe.detect.neighbours, len(run.data) - 1)
    if not wanted:
        return {}, {"layer": None, "cost_epochs": 0.0, "note": "the recipe asks for none (detect.neighbours = 0)"}
    model, record = run.original
    curvature = run.curvature()
    try:
        layer = last_called(curvature.layers)
    except UnsupportedLayerError as error:
        return {}, {"layer": None, "cost_epochs": 0.0, "note": str(error)}
    top = detect.top_influence(
        model,
        run.data,
        run.data.only(flagged),
        wanted + 1,
        curvature=restricted(curvature, layer.parameters),
        relative="loss",
        damping=horizon_damping(record),
        weight_decay=record.weight_decay,
        task=record.task,
        query_batch=max(1, _QUERY_NUMBERS // math.prod(layer.shape)),
    )
    given = dict(zip(run.data.ids, run.data.labels.tolist(), strict=True))

    def others(query: str, ids: tuple[str, ...], values: list[float]) -> list[dict[str, Any]]:
        found = [(row, value) for row, value in zip(ids, values, strict=True) if row != query and value > 0]
        return [{"id": row, "given": given[row], "influence": value} for row, value in found[:wanted]]

    beside = {
        query: {
            "alike": others(query, top.helpful[k], (-top.helpful_values[k]).tolist()),
            "against": others(query, top.harmful[k], top.harmful_values[k].tolist()),
        }
        for k, query in enumerate(top.queries)
    }
    passes = 1 + len(flagged) / len(run.data)
    return beside, {"layer": layer.name, "cost_epochs": FIT_COST + passes, "note": None}
