"""The policy gradient: how choices that have no gradient learn from the loss of a task.

Paper    Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement
         learning", Machine Learning 8
Formula  grad E[L] = E[(L - b) grad sum log p(choices)] + E[grad L], b any number that the choices do not move
"""

import torch
from torch import Tensor, nn


class MovingBaseline(nn.Module):
    """b as the moving average of the losses so far. Call it with a loss; it returns L - b, a plain number."""

    mean: Tensor
    count: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, loss: Tensor) -> Tensor:
        """loss [] to its excess [] over the average of those before, 0 for the first. Moves in training."""
        loss = loss.detach().to(self.mean.dtype)
        excess = torch.where(self.count > 0, loss - self.mean, 0.0)
        if self.training:
            kept = torch.clamp(self.count / (self.count + 1), max=self.decay)  # a plain mean at first
            self.mean = kept * self.mean + (1 - kept) * loss
            self.count = self.count + 1
        return excess
