"""A decoder of about 10 million weights on a CPU: ``python -m benchmarks.decoder [--quick] [--streamed]``.

A GPT-2 of random weights (8 blocks of width 256, 8,192 tokens, a head of its own) is trained for two epochs on 128
sequences of 64 tokens that a Markov chain made; 10 of them are shuffled at random. Then: EK-FAC is fitted; sequences
are scored by self-influence, and the tokens of two of them; the 10 are removed from the recorded training (budget one
epoch); evidence is gathered on them. ``--streamed`` fits and scores with the factors of a few layers at a time in
memory, the rest on disk.

Memory is the most resident memory in a stage above the process with weights and rows loaded, whatever earlier stages
still hold included: the edit and its evidence each fit the factors that they need, and let them go. The allocator
returns blocks above 64 KB at once, and all stages are run on a tiny model beforehand, so that code which is loaded on
first use does not count. "Activations" is what a forward pass of the loss leaves for a backward one; the last column
leaves that out, as the bar does: in training that of four sequences, its batch; else of as many as passes take at a
time (:func:`unlearn.predict.rows_within`: their outputs must take little), though the removal replays batches of four.
Sides as wide as the vocabulary have a diagonal factor. What retraining without the 10 rows would give is not computed
here.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import PeakMemory
from benchmarks.setting import Bars, threads
from unlearn import TrainSettings, remove, train
from unlearn.curvature import Curvature, find_layers, fit_curvature
from unlearn.data import Rows, as_rows, token_rows
from unlearn.detect import self_influence
from unlearn.inputs import call_model
from unlearn.models import build_model
from unlearn.pipeline.plan import factor_bytes
from unlearn.predict import outputs_of, predict, rows_within
from unlearn.tasks import get_task
from unlearn.verification.linear_prediction import agreement_of_parts, output_change, predicted_step

TASK, BATCH, LENGTH, VOCABULARY, REMOVED = "language-modelling", 4, 64, 8192, 10
FULL = {"width": 256, "depth": 8, "rows": 128, "vocabulary": VOCABULARY}
QUICK = {"width": 32, "depth": 2, "rows": 32, "vocabulary": 512}
FIRST = {"width": 8, "depth": 1, "rows": 12, "vocabulary": 64}
GROWTH = list(itertools.product((64, 128, 256), (2, 4, 8)))
GROWTH_ROWS = 16
MOST = {False: 10.0, True: 4.0}


def decoder(width: int, depth: int, vocabulary: int) -> nn.Module:
    """Return the model."""
    config = {"model_type": "gpt2", "vocab_size": vocabulary, "n_positions": LENGTH, "n_embd": width, "n_layer": depth}
    config |= {"n_head": max(1, width // 64), "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0}
    config |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return build_model("hf-causal-lm", seed=0, config=config)


def sequences(count: int, vocabulary: int, *, first: int = 0, shuffled: int = 0) -> Rows:
    """Return sequences of a chain in which a token has four successors; the first ones are shuffled at random."""
    generator = torch.Generator().manual_seed(first)
    tokens = torch.randint(vocabulary // 8, (count, 1), generator=generator)
    for _ in range(LENGTH):
        step = torch.randint(4, (count, 1), generator=generator)
        tokens = torch.cat([tokens, (tokens[:, -1:] * 5 + 17 * step + 1) % (vocabulary // 8)], 1)
    noise = torch.randint(vocabulary, (shuffled, LENGTH + 1), generator=generator)
    tokens[:shuffled] = noise
    inputs = {"input_ids": tokens[:, :-1], "attention_mask": torch.ones(count, LENGTH, dtype=torch.long)}
    return as_rows((inputs, tokens[:, 1:].contiguous()), ids=[f"{first + k}" for k in range(count)], name="sequences")


def losses(model: nn.Module, rows: Rows) -> Tensor:
    """Return the mean loss of each sequence."""
    parts = outputs_of(model, rows, batch_size=BATCH)
    return torch.cat([get_task(TASK).loss(outputs, labels) for _, outputs, labels in parts]).double()


def activations(model: nn.Module, rows: Rows, batch: int) -> None:
    """Hold what a backward pass over one batch would need."""
    inputs, labels = rows.batch(torch.arange(batch))
    get_task(TASK).loss(call_model(model, inputs), labels).mean()


class Stages:
    """Peak memory and seconds of stages, in weights of the model."""

    def __init__(self, weights: int) -> None:
        self.weights, self.table, self.activations = weights, [], 0.0  # type: ignore[var-annotated]
        self._loaded = PeakMemory()

    def run(self, name: str, work: Any) -> Any:
        """Run a stage and note what it took."""
        begin, memory = time.perf_counter(), PeakMemory()
        result = work()
        peak = memory.above(self._loaded) * 2**20 / self.weights
        self.table.append((name, peak, time.perf_counter() - begin))
        print(f"{name}: {peak:.2f} x weights, {self.table[-1][2]:.1f} s", file=sys.stderr, flush=True)
        return result


def fitted(model: nn.Module, rows: Rows, folder: str | None) -> Curvature:
    """Fit, in memory or streamed."""
    options = {} if folder is None else {"folder": folder}
    return fit_curvature(model, rows, task=TASK, batch_size=BATCH, **options)  # type: ignore[arg-type]


def measure(width: int, depth: int, rows: int, vocabulary: int, streamed: bool) -> dict[str, Any]:
    """Return the table of stages and what they found."""
    model, data = decoder(width, depth, vocabulary), sequences(rows, vocabulary, shuffled=REMOVED)
    held_out, bad = sequences(rows // 4, vocabulary, first=1000), [str(k) for k in range(REMOVED)]
    weights = sum(p.nbytes for p in model.parameters())
    layers = find_layers(model, data).layers
    stages = Stages(weights)
    for batch in (rows_within(model, data, BATCH), BATCH):
        stages.run(f"activations of {batch}", lambda batch=batch: activations(model, data, batch))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(optimizer="sgd", lr=0.3, momentum=0.9, weight_decay=0.0, epochs=2, batch_size=BATCH)
        model, record = stages.run(
            "training, 2 epochs",
            lambda: train(model, data, settings, task=TASK, folder=folder, snapshot_epochs=[0, 1, 2]),
        )
        place = str(Path(folder) / "factors") if streamed else None
        curvature = stages.run("fit", lambda: fitted(model, data, place))
        options: dict[str, Any] = {"curvature": curvature, "task": TASK, "batch_size": BATCH}
        scores = stages.run("self-influence of sequences", lambda: self_influence(model, data, **options))
        tokens = token_rows(data, [bad[0], data.ids[-1]])
        by_token = stages.run("self-influence of tokens", lambda: self_influence(model, tokens, **options))
        found = {
            "weights": weights,
            "parameters": sum(p.numel() for p in model.parameters()),
            "factors": sum(factor_bytes(layer) for layer in layers) / weights,
            "top": len({row for row, _ in scores.top(REMOVED)} & set(bad)),
            "tokens": [float(by_token.values[:LENGTH].mean()), float(by_token.values[LENGTH:].mean())],
        }
        curvature = options = None  # the edit fits its own
        if not streamed:
            edit = stages.run("removal of 10", lambda: remove(model, data, bad, record=record, budget=1.0, task=TASK))
            edit = replace(edit, curvature=None)  # of the snapshot
            found |= {"method": edit.method, "cost": edit.cost.total}
            found |= stages.run("evidence", lambda: evidence(model, edit, data, held_out))
    return {**found, "stages": stages.table}


def evidence(trained: nn.Module, edit: Any, data: Rows, held_out: Rows) -> dict[str, Any]:
    """Return losses and self-influence of changed and held-out rows, and whether outputs moved as foretold.

    These are the questions of :func:`unlearn.evidence`, which itself takes class labels only.
    """
    changed = data.only(edit.changes.ids)
    damping = edit.record.damping()
    options: dict[str, Any] = {"task": TASK, "batch_size": BATCH}
    table = {}
    for name, model, fitted_on in (("before", trained, data), ("after", edit.model, edit.edited_data)):
        curvature = fit_curvature(model, fitted_on, **options)
        for group, rows in (("removed", changed), ("held-out", held_out), ("kept", edit.edited_data)):
            table[f"loss, {group}, {name}"] = float(losses(model, rows).mean())
        scores = self_influence(model, changed, curvature=curvature, damping=damping, **options)
        table[f"self-influence, removed, {name}"] = float(torch.as_tensor(scores.values).median())
        if name == "before":
            asked: dict[str, Any] = {"task": get_task(TASK), "weight_decay": 0.0, "damping": damping}
            step = predicted_step(trained, data, edit.changes, curvature, **asked)
        del curvature
    singles = [changed.at(place) for place in torch.arange(len(changed)).split(1)]
    agreement = agreement_of_parts(
        (output_change(trained, row, step).flatten(1), (predict(edit.model, row) - predict(trained, row)).flatten(1))
        for row in singles
    )
    return {"evidence": table, "foretold": {"cosine": agreement.cosine, "slope": agreement.slope}}


def growth(width: int, depth: int, streamed: bool) -> dict[str, float]:
    """Return what a fit and a score of a few rows take at a size."""
    model, rows = decoder(width, depth, VOCABULARY), sequences(GROWTH_ROWS, VOCABULARY)
    weights = sum(p.nbytes for p in model.parameters())
    layers = find_layers(model, rows).layers
    stages = Stages(weights)
    stages.run("activations", lambda: activations(model, rows, rows_within(model, rows, BATCH)))
    with tempfile.TemporaryDirectory() as folder:
        curvature = stages.run("fit", lambda: fitted(model, rows, folder if streamed else None))
        stages.run("score", lambda: self_influence(model, rows, curvature=curvature, task=TASK, batch_size=BATCH))
    (_, base, _), (_, fit, seconds), (_, score, scoring) = stages.table
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "factors": sum(factor_bytes(layer) for layer in layers) / weights,
        "fit": fit - base,
        "fit_seconds": seconds,
        "score": score - base,
        "score_seconds": scoring,
    }


def apart(*words: str) -> Any:
    """Run a part of this benchmark in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.decoder", "one", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main(words: list[str]) -> None:
    """Print the tables and the bar."""
    streamed = "--streamed" in words
    if words[:1] == ["one"]:
        torch.set_num_threads(1)
        size = QUICK if "--quick" in words else FULL
        grown = [int(word) for word in words[1:3]] if words[1].isdigit() else []
        with contextlib.redirect_stderr(io.StringIO()):
            growth(8, 1, streamed) if grown else measure(**FIRST, streamed=streamed)
        print(json.dumps(growth(*grown, streamed) if grown else measure(**size, streamed=streamed)))
        return
    print(" ".join(["# python -m benchmarks.decoder", *words]))
    print(f"\n{threads()}\n\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}\n")
    found = apart("measure", *words)
    (little, few, _), (much, many, _), *stages = found["stages"]
    print(
        f"{found['parameters']:,} weights, {found['weights'] / 2**20:.0f} MB; factors {found['factors']:.2f} times as "
        f"much; {little} sequences {few:.2f} times, {much} {many:.2f} times.\n"
    )
    print("| stage | peak, times the weights | without activations | s |\n|---|---|---|---|")
    bars = Bars()
    for name, peak, seconds in stages:
        rest = peak - (many if name.startswith("training") else few)
        print(f"| {name} | {peak:.2f} | {rest:.2f} | {seconds:.1f} |")
        if not streamed or not name.startswith("training"):
            bars.hold(f"{name}: memory without activations, times the weights", rest, MOST[streamed])
    print(f"\nOf the {REMOVED} shuffled sequences, {found['top']} are among the {REMOVED} of largest self-influence.")
    print("Mean self-influence of a token: {:.3g} in a shuffled sequence, {:.3g} in another.".format(*found["tokens"]))
    if not streamed:
        foretold = found["foretold"]
        print(f"\nRemoval by {found['method']}, {found['cost']:.2f} training epochs. Evidence:\n")
        print("| | before | after |\n|---|---|---|")
        for name in dict.fromkeys(key.rsplit(", ", 1)[0] for key in found["evidence"]):
            print(
                f"| {name} | {found['evidence'][name + ', before']:.3g} | {found['evidence'][name + ', after']:.3g} |"
            )
        print(
            f"\nOutputs on the removed rows against what the curvature foretells: cosine {foretold['cosine']:.2f}, "
            f"{foretold['slope']:.2g} times as far."
        )
    if "--quick" not in words:
        print(f"\nGrowth, {GROWTH_ROWS} sequences, memory in weights without activations:\n")
        print("| width, depth | weights | factors | fit | s | score | s |\n|---|---|---|---|---|---|---|")
        for width, depth in GROWTH:
            one = apart(str(width), str(depth), *words)
            cells = "{factors:.2f} | {fit:.2f} | {fit_seconds:.1f} | {score:.2f} | {score_seconds:.1f}".format(**one)
            print(f"| {width}, {depth} | {one['parameters']:,} | {cells} |", flush=True)
    print(str(bars).replace("mean over seeds", "one run"))


if __name__ == "__main__":
    main(sys.argv[1:])
