"""A small causal language model with the arguments and outputs of a Hugging Face one, and padded sentences for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlearn.data import Rows, as_rows

N, T, V = 8, 5, 7


class Output(dict):
    """What models of Hugging Face return: a mapping with attributes."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


class Causal(nn.Module):
    """A small causal language model with the arguments and outputs of a Hugging Face one, head tied to embedding."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(V, 4), nn.Embedding(T, 4)
        self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)
        self.head = nn.Linear(4, V, bias=False)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
        t = input_ids.shape[1]
        h = self.token(input_ids) + self.place(torch.arange(t, device=input_ids.device))
        causal = torch.ones(t, t, dtype=torch.bool, device=input_ids.device).triu(1)
        padding = None if attention_mask is None else attention_mask == 0
        h = h + self.attention(h, h, h, attn_mask=causal, key_padding_mask=padding)[0]
        return Output(logits=self.head(self.norm(h)))


def sentences() -> dict[str, Tensor]:
    tokens = torch.randint(1, V, (N, T), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([5, 3, 5, 4, 2, 5, 3, 4])
    mask = (torch.arange(T) < lengths[:, None]).long()
    labels = torch.where(mask.roll(-1, 1).bool() & (torch.arange(T) < T - 1), tokens.roll(-1, 1), -100)
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}


def token_rows() -> Rows:
    columns = sentences()
    labels = columns.pop("labels")
    return as_rows((columns, labels), name="sentences")


def language_model(tied: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Causal(tied).double()
