"""ClosedFormMethod: erasers that solve for new weights, without a training."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unreel.edits import Edit
from unreel.methods.method import Method, Task
from unreel.models.model import Model
from unreel.models.roles import split_name
from unreel.weights import hashes_of


def ridge(centre: Tensor, inputs: Tensor, outputs: Tensor, scales: Tensor, lam: float) -> Tensor:
    """The matrix W (O, D) that minimises sum_i s_i || W c_i - v_i ||^2 + lam || W - W_c ||_F^2, in float64.

        W = [ sum_i s_i v_i c_i^T + lam W_c ] [ sum_i s_i c_i c_i^T + lam I ]^{-1}

    Args:
        centre: W_c (O, D), what W stays near.
        inputs: c_i, (N, D).
        outputs: v_i, (N, O).
        scales: s_i >= 0, (N,).
        lam: > 0.
    """
    centre, inputs, outputs, scales = (t.double() for t in (centre, inputs, outputs, scales))
    weighted = inputs * scales[:, None]
    gram = inputs.T @ weighted + lam * torch.eye(inputs.shape[1], dtype=torch.float64, device=inputs.device)
    return torch.linalg.solve(gram, weighted.T @ outputs + lam * centre.T).T


@dataclass(frozen=True, kw_only=True)
class ClosedFormMethod(Method):
    """An eraser whose weights are the solution of an equation, such as the keys and values of cross-attention."""

    @abstractmethod
    def solve(self, model: Model, task: Task, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """New values of the selected weights, float64.

        Args:
            model: reads the texts; it is not changed.
            task: what is erased, what is kept.
            weights: "component/parameter" -> its value, float64, of the weights that may change.
        """

    def erase(self, model: Model, task: Task) -> Edit:
        every = {f"{k}/{n}": p for k, module in model.components.items() for n, p in module.named_parameters()}
        weights = {name: every[name].detach().double() for name in model.select(task.roles)}
        with torch.no_grad():
            solved = self.solve(model, task, weights)
        tensors = {"/".join(split_name(name)): value.to(every[name].dtype).cpu() for name, value in solved.items()}
        edit = Edit(tensors, hashes_of(model.components, self.edits), self.name)
        return replace(edit, provenance={"facts": self.facts(model, edit)})
