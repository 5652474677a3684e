"""Tiny randomly initialised models of transformers, padded rows for them, and one backward pass for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from unlearn.data import Rows, as_rows
from unlearn.inputs import map_tensors
from unlearn.models import build_model
from unlearn.modes import evaluation
from unlearn.tasks import get_task

N, T, V, CLASSES = 6, 7, 23, 3
LENGTHS = torch.tensor([7, 5, 3, 7, 6, 4])
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12},
    "roberta": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12},
    "distilbert": {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12},
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2},
    "llama": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 12,
    },
}
# name: (registered name, model type, further options of its configuration)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("hf-sequence-classification", "bert", {}),
    "roberta": ("hf-sequence-classification", "roberta", {}),
    "distilbert": ("hf-sequence-classification", "distilbert", {}),
    "gpt2": ("hf-sequence-classification", "gpt2", {}),
    "llama": ("hf-sequence-classification", "llama", {}),
    "gpt2-lm": ("hf-causal-lm", "gpt2", {}),
    "gpt2-lm-own-head": ("hf-causal-lm", "gpt2", {"tie_word_embeddings": False}),
    "llama-lm": ("hf-causal-lm", "llama", {}),
}
TASKS = {"hf-sequence-classification": "classification", "hf-causal-lm": "language-modelling"}


def options_of(case: str) -> dict[str, Any]:
    """Return the options of a recipe for the model of a case."""
    name, kind, more = CASES[case]
    config = {"model_type": kind, "vocab_size": V, "max_position_embeddings": T + 4, **_SIZES[kind], **_ENDS, **more}
    return {"config": config} | ({"classes": CLASSES} if name == "hf-sequence-classification" else {})


def build(case: str, seed: int = 0) -> tuple[nn.Module, Rows, str]:
    """Return the model of a case in float64, rows, and the name of its task."""
    name = CASES[case][0]
    model = build_model(name, seed=seed, **options_of(case)).double()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in model.parameters():  # zeros and ones hide mistakes
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, rows_of(case), TASKS[name]


def rows_of(case: str, columns: int = T) -> Rows:
    """Return rows padded on the right to so many columns."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, V, (N, T), generator=generator)
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    tokens = torch.cat([tokens, torch.zeros(N, columns - T, dtype=torch.long)], 1)
    mask = (torch.arange(columns) < LENGTHS[:, None]).long()
    tokens = tokens * mask
    if CASES[case][0] == "hf-causal-lm":
        follows = mask.roll(-1, 1).bool() & (torch.arange(columns) < columns - 1)
        labels = torch.where(follows, tokens.roll(-1, 1), -100)
    return as_rows(({"input_ids": tokens, "attention_mask": mask}, labels), ids=[f"row-{k}" for k in range(N)])


def row_loss_gradients(model: nn.Module, rows: Rows, task: str) -> list[dict[str, Tensor]]:
    """Return each row's loss gradient by torch.func, one row at a time."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], inputs: Any, label: Tensor) -> Tensor:
        return get_task(task).loss(functional_call(model, weights, (), inputs)["logits"], label).sum()

    found = []
    with evaluation(model):
        for k in range(len(rows)):
            inputs, labels = rows.batch(torch.tensor([k]))
            found.append(grad(loss)(weights, inputs, labels))
    return found


def fisher_gradients(model: nn.Module, rows: Rows, task: str) -> list[dict[str, Tensor]]:
    """Return the gradients whose mean outer product over rows is the exact Fisher: of each row (columns, ...)."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    found = []
    with evaluation(model):
        for k in range(len(rows)):
            inputs, labels = rows.batch(torch.tensor([k]))
            inputs = map_tensors(lambda x: x, inputs)
            jacobian = jacrev(lambda w, x=inputs: functional_call(model, w, (), x)["logits"])(weights)
            outputs = functional_call(model, weights, (), inputs)["logits"]
            root = get_task(task).fisher_root(outputs, labels).flatten(1)
            found.append(
                {name: torch.tensordot(root, j.flatten(0, outputs.ndim - 1), 1) for name, j in jacobian.items()}
            )
    return found
