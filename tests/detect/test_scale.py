"""Reduced cases of ``python -m benchmarks.scale rows``, and what the plan on paper counts against what is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.decoder import LENGTH, TASK, decoder, sequences
from benchmarks.scale import MEMORY_BAR, QUICK_SIZES, WORK, exponent, measure_apart
from benchmarks.scale_plan import Decoder, Operations
from unlearn.curvature import Basis, Taps, find_layers, fit_curvature
from unlearn.tasks import get_task


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures resident memory in /proc")
@pytest.mark.parametrize("what", WORK)
def test_ten_times_the_rows_take_little_more_memory(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the rows of the full case and a tenth of its bar; rejects inputs or gradients that are kept.

    In processes of their own, as in the full case: what other tests left in this one moves its peak.
    """
    monkeypatch.chdir(Path(__file__).parents[2])
    few, many = (measure_apart(what, count)["peak"] for count in (QUICK_SIZES[0], QUICK_SIZES[-1]))
    assert many - few <= MEMORY_BAR / 10


def test_the_exponent_is_that_of_the_power() -> None:
    assert exponent((10, 20, 80), [3.0, 12.0, 192.0]) == pytest.approx(2.0)


def test_the_plan_counts_the_layers_and_operations_of_a_decoder() -> None:
    """Rejects gradients of weights in the passes, a side forgotten, and a rotation of every token where one is less."""
    width, depth, vocabulary, count = 32, 2, 512, 4
    model, rows = decoder(width, depth, vocabulary), sequences(count, vocabulary)
    plan = Decoder(width, depth, vocabulary)
    skip = ["transformer.wte", "transformer.wpe", "*.ln_*"]
    layers = find_layers(model, rows, skip).layers
    told = [(la.name, la.shape, la.unit_outputs, la.unit_inputs) for la in layers]
    assert told == [
        (f"transformer.{la.name}".replace("transformer.lm_head", "lm_head"), la.shape, la.unit_outputs, la.unit_inputs)
        for la in plan.layers
    ]
    operations, tokens = Operations.of(plan, LENGTH), count * LENGTH
    taps, (inputs, labels) = Taps(model, layers), rows.batch(torch.arange(count))
    with FlopCounterMode(display=False) as passes:
        outputs = taps.run(inputs)
        gradients = taps.gradients(outputs, get_task(TASK).output_gradient(outputs.detach(), labels))
    assert passes.get_total_flops() == tokens * operations.passes
    blocks = fit_curvature(model, rows, task=TASK, skip=skip).blocks
    with FlopCounterMode(display=False) as rotations:
        for name, block in blocks.items():
            for _ in Basis(block.basis.inputs, block.basis.outputs).gradients(
                taps.inputs(block.layer), gradients[name]
            ):
                pass
    assert rotations.get_total_flops() == tokens * operations.rotations
