"""RECE: UCE, then rounds that find the embedding which still brings the concept back, and edit that away too.

With W_old the key and value matrices as they were and W those so far, each token embedding c of a concept's texts has
one that makes the edited matrices say what the old ones said:

    c' = argmin_z  sum_W || W z - W_old c ||^2 + lam_r || z ||^2
       = ( lam_r I + sum_W W^T W )^{-1} ( sum_W W^T W_old ) c

A round is a UCE edit of W with c' in the place of c, whose values and whose ridge are those of W, not of W_old.

Reference: Chao Gong et al., "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models", ECCV 2024,
arXiv 2407.12383.
Departures: With `accumulate`, which is ours, a round erases the c and c' of those before it too. The released code lets
go of them; on the zoo, where neighbours are preserved, that brought the plain concept back (Van Gogh in 75 % of images
after one round). Preserved texts are those of UCE here. The number of rounds is given; the paper takes the best one of
several by a detector. The systems are solved in float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from unreel.methods.closed_form import ClosedFormMethod
from unreel.methods.method import Task
from unreel.methods.uce import UCE, Rows, edited
from unreel.models.model import Model
from unreel.validation import checked


def brought_back(old: Mapping[str, Tensor], new: Mapping[str, Tensor], rows: Tensor, lam_r: float) -> Tensor:
    """c' (N, D) of each token embedding c (N, D); `old` and `new` have the same matrices (O, D) by name."""
    gram = lam_r * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    cross = torch.zeros_like(gram)
    for name, w in new.items():
        gram += w.T @ w
        cross += w.T @ old[name]
    return torch.linalg.solve(gram, cross @ rows.T).T


def joined(some: Rows, others: Rows) -> Rows:
    """Both erased pairs; what is preserved is the same."""
    return replace(some, erased=torch.cat([some.erased, others.erased]), guides=torch.cat([some.guides, others.guides]))


@checked
class RECE(ClosedFormMethod):
    """The method; hyperparameters and their sources are in conf/method/rece.yaml.

    Attributes:
        uce: the edit that it begins with; its texts, tokens, scales and lam are those of all rounds.
        epochs: rounds.
        lam_r: how short c' is kept, which bounds what a round can change.
        accumulate: whether a round holds the erased pairs of all before it too.

    Raises:
        ValueError: for a value that will not do.
    """

    uce: UCE
    epochs: NonNegativeInt
    lam_r: PositiveFloat
    accumulate: bool
    edits = UCE.edits
    roles = UCE.roles

    def check(self, model: Model, roles: Sequence[str]) -> None:
        super().check(model, roles)
        self.uce.check(model, roles)

    def solve(self, model: Model, task: Task, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        rows = self.uce.rows(model, task)
        values = (self.uce.erase_scale, self.uce.preserve_scale, self.uce.lam)
        new, pairs = edited(weights, rows, *values), rows
        for _ in range(self.epochs):
            back = replace(rows, erased=brought_back(weights, new, rows.erased, self.lam_r))
            pairs = joined(pairs, back) if self.accumulate else back
            new = edited(new, pairs, *values)
        return new
