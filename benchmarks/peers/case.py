"""One job that all packages get: a model, rows, queries, one set of sampled labels and one damping."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.models import build_model
from unlearn.predict import predict
from unlearn.tasks import get_task

DAMPING_SHARE = 0.1


@dataclass(frozen=True)
class Case:
    """What is measured on.

    Attributes:
        architecture: name and options of :func:`unlearn.models.build_model`.
        model: trained.
        inputs: of the rows.
        labels: given labels.
        sampled: labels drawn from the model, those that ``fit_curvature(seed=0)`` draws: the Fisher of all packages.
        queries: inputs and labels of queries.
        damping: a tenth of the mean eigenvalue of our fit, as a number for all packages and layers.
    """

    architecture: dict[str, Any]
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    sampled: Tensor
    queries: tuple[Tensor, Tensor]
    damping: float

    @classmethod
    def of(
        cls, architecture: dict[str, Any], model: nn.Module, rows: Rows, queries: Rows, *, damping_rows: int = 1000
    ) -> Case:
        """Return the case of a model; the damping is found on the first ``damping_rows``."""
        inputs, labels = rows.batch(torch.arange(len(rows)))
        named = Rows.from_tensors(inputs, labels, classes=rows.classes)
        outputs = predict(model, named)
        # the gradient p - e_s is negative at the drawn label s alone
        sampled = get_task("classification").sampled_gradient(outputs, labels, 0, named.ids).argmin(1)
        curvature = fit_curvature(model, named.at(torch.arange(min(damping_rows, len(named)))))
        damping = DAMPING_SHARE * curvature.mean_eigenvalue
        return cls(architecture, model, inputs, labels, sampled, queries.batch(torch.arange(len(queries))), damping)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def rows(self) -> Rows:
        """The rows, whose ids are their numbers."""
        return Rows.from_tensors(self.inputs, self.labels, classes=self.architecture["options"]["classes"])

    def first(self, count: int) -> Case:
        """Return the case of the first rows, with the same damping."""
        parts = (part[:count] for part in (self.inputs, self.labels, self.sampled))
        return Case(self.architecture, self.model, *parts, self.queries, self.damping)

    def copy_of_model(self) -> nn.Module:
        """Return a model for a package that changes it."""
        return copy.deepcopy(self.model).eval()

    def save(self, path: Path) -> None:
        """Write to one file."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {"inputs": self.inputs, "labels": self.labels, "sampled": self.sampled}
        tensors |= {"query_inputs": self.queries[0], "query_labels": self.queries[1]}
        about = {"architecture": self.architecture, "damping": self.damping}
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"case": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read from a file."""
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["case"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        architecture = about["architecture"]
        model = build_model(architecture["name"], seed=0, **architecture["options"])
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        rows = (tensors[name] for name in ("inputs", "labels", "sampled"))
        queries = tensors["query_inputs"], tensors["query_labels"]
        return cls(architecture, model.eval(), *rows, queries, about["damping"])
