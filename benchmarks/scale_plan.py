"""A plan on paper for a transformer of a billion weights and ten million rows: ``python -m benchmarks.scale_plan``.

**Never run.** Bytes, passes and operations are counted from the shapes of the layers and what the code does with them;
peaks are those that `benchmarks.decoder --streamed` measured up to 10 million weights, taken to stay the same multiple
of the weights; rows are those of `benchmarks.scale`. What is assumed is stated below. Operations of a token: 2 for each
weight of a matrix in the forward pass and 2 in the backward pass (no gradient of a weight is formed; training forms
them, 2 more), and 12 x width for each block and token of the row in attention; k^2 for a second moment of size k;
2 k^2 for a rotation by a basis of size k, applied to the row's tokens or to the row's gradient, whichever is less; 2
for each weight to form a gradient. An eigendecomposition of size k takes 9 k^3. What is linear in the weights for each
row is left out.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unlearn.curvature.factor_file import factor_count
from unlearn.curvature.fit import layer_groups
from unlearn.curvature.layers import Layer
from unlearn.pipeline.plan import size

RESULTS = Path(__file__).parent / "results"
GPUS, MEMORY, RATE, DOUBLE_RATE, DISK = 8, 80e9, 1e14, 2e12, 2e9
ROWS, FITTED, LENGTH, AT_ONCE = 10_000_000, 65_536, 512, 32


@dataclass(frozen=True)
class Decoder:
    """The matrices of a GPT-2 with a head of its own; ``wte`` is skipped, norms and places are not counted."""

    width: int
    depth: int
    vocabulary: int

    @property
    def layers(self) -> list[Layer]:
        """Its layers with Kronecker factors, in order."""
        d = self.width
        inside = {"attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}
        found = [
            Layer(f"h.{k}.{name}", "Linear", {f"h.{k}.{name}.weight": (i, o)}, True, (1, o, i + 1), transposed=True)
            for k in range(self.depth)
            for name, (o, i) in inside.items()
        ]
        head = Layer("lm_head", "Linear", {"lm_head.weight": (self.vocabulary, d)}, False, (1, self.vocabulary, d))
        return [*found, head]

    @property
    def weights(self) -> int:
        """Weights of all matrices, the embedding of tokens among them."""
        return sum(math.prod(layer.shape) for layer in self.layers) + self.vocabulary * self.width


@dataclass(frozen=True)
class Operations:
    """Operations of one token: in training, in a pass forward and backward to the layers, and beside it."""

    epoch: float
    passes: float
    moments: float
    rotations: float

    @classmethod
    def of(cls, model: Decoder, length: int) -> Operations:
        """Count them; see the head of this file."""
        matrices = [math.prod(*layer.parameters.values()) for layer in model.layers]
        attention = 12 * model.depth * length * model.width
        moments = rotations = 0.0
        for layer in model.layers:
            _, o, i = layer.shape
            outputs = 0 if layer.unit_outputs else o
            moments += i * i + outputs * outputs
            rotations += 2 * o * i
            rotations += 2 * i * i * min(1, o / length)
            rotations += 2 * outputs * outputs * min(1, i / length)
        passes = 4.0 * sum(matrices) - 2 * matrices[0] + attention  # nothing is asked of what the first one reads
        return cls(6.0 * sum(matrices) + attention, passes, moments, rotations)


def measured_multiples() -> dict[str, tuple[float, float]]:
    """Return peaks of the streamed decoder in weights: of the largest one, and the slope of bytes over bytes in all."""
    table = re.findall(r"^\| \d+, \d+ \|(.*)\|$", (RESULTS / "decoder_streamed.md").read_text(), re.MULTILINE)
    cells = np.array([[float(cell.replace(",", "")) for cell in row.split("|")] for row in table])
    sizes, fit, score = cells[:, 0], cells[:, 2], cells[:, 4]
    largest = sizes.argmax()
    return {
        name: (max(0.0, float(values[largest])), float(np.polyfit(sizes, values * sizes, 1)[0]))  # of a step or more
        for name, values in (("fit", fit), ("score", score))
    }


def measured_row_bytes() -> float:
    """Return bytes of memory for each row, from the rows scored in shards."""
    (line,) = re.findall(
        r"^\| self-influence in shards \|(.*)\|$", (RESULTS / "scale_rows.md").read_text(), re.MULTILINE
    )
    cells = [float(cell) for cell in line.split("|")]
    return cells[-2] * 2**20 / 900_000


def hours(operations: float) -> float:
    """Return how long so many operations take."""
    return operations / (RATE * GPUS) / 3600


def table(title: str, lines: dict[str, str]) -> str:
    """Return a table of two columns."""
    return "\n".join([f"\n| {title} | |", "|---|---|", *(f"| {name} | {text} |" for name, text in lines.items())])


def main(words: list[str]) -> None:
    """Print the plan."""
    if words:
        raise SystemExit(f"usage: python -m benchmarks.scale_plan, not {' '.join(words)!r}")
    model = Decoder(width=2048, depth=20, vocabulary=32_000)
    count, peaks, each = Operations.of(model, LENGTH), measured_multiples(), measured_row_bytes()
    weights, sizes = 4 * model.weights, [4 * factor_count(layer, "ekfac") for layer in model.layers]
    factors, groups = sum(sizes), len(layer_groups(model.layers, sizes, weights))
    sides = [k for la in model.layers for k in (la.shape[2], 0 if la.unit_outputs else la.shape[1])]
    eigen = 9 * sum(float(k) ** 3 for k in sides)
    tokens, fitted = LENGTH * ROWS, LENGTH * FITTED
    epoch, score = tokens * count.epoch, tokens * (count.passes + count.rotations)
    fit = {passes: fitted * (passes * count.passes + count.moments + count.rotations) for passes in (2, 2 * groups)}
    reads = ROWS / GPUS / AT_ONCE * factors
    print("# python -m benchmarks.scale_plan")
    print(f"\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}")
    assumed = {
        "model": f"GPT-2: width {model.width:,}, {model.depth} blocks, {model.vocabulary:,} tokens, a head of its own",
        "weights": f"{model.weights:,}, {size(weights)} in float32",
        "covered": "all matrices but `wte`, which is skipped: its inputs are unit vectors as long as the vocabulary",
        "rows": f"{ROWS:,} of {LENGTH} tokens; the curvature from {FITTED:,} of them",
        "machine": f"{GPUS} GPUs of {MEMORY / 1e9:.0f} GB, one rank each; every rank has all weights and factors",
        "sustained": f"{RATE / 1e12:.0f} TFLOP/s a GPU (TF32), {DOUBLE_RATE / 1e12:.0f} in eigendecompositions",
        "disk": f"{DISK / 1e9:.0f} GB/s a rank",
        "rows at once": f"{AT_ONCE} a GPU",
    }
    counted = {
        "factors": f"{size(factors)}, {factors / weights:.2f} times the weights; the largest layer {size(max(sizes))}",
        "passes of a fit, factors in memory": "2",
        "passes of a streamed fit": f"{2 * groups}: {groups} groups of layers",
        "operations of a token: passes": f"{count.passes:.2e}",
        "second moments": f"{count.moments:.2e}",
        "rotations": f"{count.rotations:.2e}",
        "a training epoch": f"{epoch:.2e} operations, {hours(epoch):.1f} hours",
        "fit, factors in memory": f"{fit[2]:.2e} operations, {hours(fit[2]):.2f} hours",
        "fit, streamed": f"{fit[2 * groups]:.2e} operations at most, {hours(fit[2 * groups]):.2f} hours",
        "eigendecompositions": f"{eigen:.2e} operations, {eigen / DOUBLE_RATE / GPUS:.0f} seconds, shared out",
        "scores of all rows": f"{score:.2e} operations, {hours(score):.1f} hours, {score / epoch:.2f} epochs",
        "the same, streamed": f"and {reads:.1e} bytes read by each rank, {reads / DISK / 3600:.0f} hours",
    }
    scaled = {
        f"{name}, streamed: peak without activations": f"{multiple:.2f} times the weights, as the largest decoder "
        f"({slope:.2f} for each weight more): {size((1 + multiple) * weights)} with the weights"
        for name, (multiple, slope) in peaks.items()
    }
    scaled["score, factors in memory"] = size((1 + peaks["score"][0]) * weights + factors)
    scaled["ids, class labels and scores of rows"] = f"{each:.0f} bytes a row, {size(each * ROWS)}"
    scaled["labels of tokens in memory"] = f"{size(8 * tokens)}: read the rows as a stream"
    print(
        table("assumed", assumed), table("counted", counted), table("scaled from what was measured", scaled), sep="\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
