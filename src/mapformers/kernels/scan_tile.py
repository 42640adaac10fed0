"""One tile of causal sums on the torch path: some rows, a stretch of chunks, forward and backward by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.kernels.exponential import LOG2_E, exponential, exponential_grad

CHUNK = 64


class Tile:
    """Some rows and one stretch of chunks: [p, chunks, CHUNK, ..]."""

    def __init__(self, rows: tuple[Tensor, Tensor, Tensor], sums: Tensor, exponents: Tensor | None) -> None:
        self.a, self.b, self.values = map(_chunked, rows)
        self.sums, self.exponents = sums, exponents
        self.height: Tensor | None = None  # [p, chunks, CHUNK] log of what features of keys are divided by
        if exponents is not None:
            self.a, _ = exponential(self.a, exponents)  # a query's own divisor cancels
            self.b, self.height = exponential(self.b, exponents)
        self.share: Tensor | None = None  # [p, chunks, CHUNK, CHUNK] of a key for a query of its chunk
        self.read: Tensor | None = None  # [p, chunks, CHUNK, 1] of what was before the chunk, for a query
        self.kept: Tensor | None = None  # [p, chunks, CHUNK, 1] of a key in the sums behind its chunk
        self.bring: Tensor | None = None  # [p, chunks + 1, chunks + 1] of earlier chunks in later sums

    def weigh(self, mark: Tensor, level: Tensor) -> Tensor:
        """Set the shares. Levels are running maxima, so that no share exceeds 1 and no later key changes
        what is before it. Returns them, [p, n].
        """
        n = mark.shape[-1]
        mark = mark if self.height is None else mark + self.height.flatten(1)[:, :n]
        top = torch.maximum(mark.cummax(-1).values, level[:, None])
        pad = -n % CHUNK
        marks = F.pad(mark, (0, pad), value=float("-inf")).unflatten(-1, (-1, CHUNK))
        tops = torch.cat([top, top[:, -1:].expand(-1, pad)], -1).unflatten(-1, (-1, CHUNK))
        levels = torch.cat([level[:, None], tops[..., -1]], -1)  # [p, chunks + 1]
        self.share = (marks.unsqueeze(-2) - tops.unsqueeze(-1)).mul_(LOG2_E).exp2_().tril_()
        self.read = (levels[:, :-1, None] - tops).exp_().unsqueeze(-1)
        self.kept = (marks - levels[:, 1:, None]).exp_().unsqueeze(-1)
        self.bring = (levels[:, None, :] - levels[:, :, None]).clamp_(max=0).exp_().tril_()
        return top

    def sums_upto(self) -> Tensor:
        """[p, chunks + 1, E, F] the sums before each chunk, and behind the last."""
        rows, chunks, _, features = self.b.shape
        parts = self.b.new_empty(rows, chunks + 1, self.values.shape[-1], features)
        parts[:, 0] = self.sums.mT
        torch.matmul(self.kept_values().mT, self.b, out=parts[:, 1:])
        if self.bring is None:
            return parts.cumsum_(1)
        return (self.bring @ parts.flatten(2)).view_as(parts)

    def kept_values(self) -> Tensor:
        """[p, chunks, CHUNK, E] values with the share of their keys in the sums behind the chunk."""
        return self.values if self.kept is None else self.values * self.kept

    def pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """x y^T inside each chunk, times the shares."""
        product = x @ y.mT
        return product.tril_() if self.share is None else product.mul_(self.share)

    def forward(self) -> tuple[Tensor, Tensor]:
        """y and the sums behind the tile."""
        upto = self.sums_upto()
        y = self.a @ upto[:, :-1].mT
        y = y if self.read is None else y.mul_(self.read)
        return y.add_(self.pairs(self.a, self.b) @ self.values), upto[:, -1].mT

    def backward(self, grad: Tensor, grad_sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of a, b, values and the sums before, from those of y [p, n, E] and the sums behind."""
        grad = _chunked(grad)
        read = grad if self.read is None else grad * self.read
        shared = self.pairs(grad, self.values)
        grad_a = (read @ self.sums_upto()[:, :-1]).add_(shared @ self.b)
        after = torch.cat([read.mT @ self.a, grad_sums.mT.unsqueeze(1)], 1)  # [p, chunks + 1, E, F]
        if self.bring is None:
            before = after.flip(1).cumsum_(1).flip(1)
        else:
            before = (self.bring.mT @ after.flatten(2)).view_as(after)
        own = before[:, 1:]
        grad_b = (self.kept_values() @ own).add_(shared.mT @ self.a)
        grad_values = self.b @ own.mT
        grad_values = grad_values if self.kept is None else grad_values.mul_(self.kept)
        grad_values.add_(self.pairs(self.a, self.b).mT @ grad)
        if self.exponents is not None:
            grad_a = exponential_grad(grad_a, self.a, self.exponents)
            grad_b = exponential_grad(grad_b, self.b, self.exponents)
        return grad_a, grad_b, grad_values, before[:, 0].mT


def _chunked(x: Tensor) -> Tensor:
    """[p, n, ..] to [p, chunks, CHUNK, ..], zeros behind the last."""
    pad = -x.shape[1] % CHUNK
    return (F.pad(x, (0, 0, 0, pad)) if pad else x).unflatten(1, (-1, CHUNK))
