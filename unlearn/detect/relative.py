"""Relative influence: what an influence is divided by, so that a large gradient alone does not rank a row high.

    gradient      ||g||                    both gradients of a pair scaled to length 1 (arXiv 2201.10055)
    parameters    ||H^-1 g||               theta-RelatIF: influence for each unit that the weights move
    loss          sqrt(g^T H^-1 g)         l-RelatIF: influence for each unit that the losses of the data move
                                                                                          (arXiv 2003.11630)

with g the gradient of the training row and H = G + w + d.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from unlearn.curvature import Curvature
from unlearn.curvature.per_sample import LayerGradients
from unlearn.detect.gradient_norms import squared_norms

Relative = Literal["gradient", "parameters", "loss"]


def row_norms(curvature: Curvature, added: float, relative: Relative) -> Callable[[LayerGradients], Tensor]:
    """Return the function from the gradients of rows to what their influence is divided by, (b,) in float64.

    Args:
        curvature: G.
        added: w + d.
        relative: which norm.
    """
    forms: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    if relative == "gradient":
        forms = dict.fromkeys(curvature.blocks, squared_norms)
    elif relative == "loss":
        forms = curvature.per_layer(lambda block: block.quadratic_form(added))
    else:
        forms = curvature.per_layer(  # g^T H^-2 g
            lambda block: replace(block, eigenvalues=(block.eigenvalues + added).square()).quadratic_form(0.0)
        )

    def norms(gradients: LayerGradients) -> Tensor:
        parts = [forms[name](a, d).double() for name, (a, d) in gradients.items()]
        return torch.stack(parts).sum(0).sqrt().cpu()

    return norms


def divided(values: Tensor, norms: Tensor) -> Tensor:
    """Return values / norms, 0 where a norm is 0: a row without a gradient has no influence.

    >>> divided(torch.tensor([4.0, 0.0]), torch.tensor([2.0, 0.0])).tolist()
    [2.0, 0.0]
    """
    return torch.where(norms > 0, values / torch.where(norms > 0, norms, 1.0), 0.0)
