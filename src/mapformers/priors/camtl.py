"""Conditional attention of CA-MTL: a learned table on the diagonal blocks, moved by the task.

Paper    Pilault, El hattami, Pal 2021, "Conditionally Adaptive Multi-Task Learning", ICLR,
         arXiv 2009.09139, section 2.2.
Formula  score[b, h, i, j] += (1 + gamma_j) A_n[i, j] + beta_j where i and j lie in the same n-th of `blocks`
         blocks of the first `limit` positions, else + 0; (gamma, beta) = linear(embedding of the task of b)
Cost     O(1) per pair
Differs  Gamma and beta are per column, the same for all blocks, as in the published code. Blocks hold
         limit / blocks tokens, rounded up. A starts from small random numbers, not from zero. Attention only:
         the conditional embeddings, norms and bottleneck of the paper are left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import linear, normal
from mapformers.core.errors import require
from mapformers.core.score import Call, Memory, Pairs, ScoreSite, ScoreTerm

SPREAD = 0.02  # of the numbers that the table starts from


@dataclass(frozen=True)
class CamtlConfig:
    """Options of camtl."""

    blocks: int = option(6, "blocks on the diagonal")
    limit: int = option(128, "positions that the blocks cover")
    tasks: int = option(0, "tasks with an embedding; 0 = the table alone")
    size: int = option(64, "size of the embedding of a task")

    def __post_init__(self) -> None:
        for name, least in (("blocks", 1), ("limit", 1), ("tasks", 0), ("size", 1)):
            value = getattr(self, name)
            require(
                value >= least,
                f"camtl: {name} must be {least} or more, got {value}; use {max(1, least)} for example",
            )
        require(
            self.blocks <= self.limit,
            f"camtl: blocks must be no more than limit={self.limit}, got {self.blocks}; give longer blocks",
        )


class Camtl(ScoreTerm):
    """Block-diagonal bias under the task of the batch row.

    task says which: [B] of the batch rows, or one number for all of them, 0 until it is set. None = gamma
    and beta are zero.
    """

    Config = CamtlConfig
    card = Card(
        name="camtl",
        kind="score",
        family="attention with prior",
        paper="Pilault et al. 2021, arXiv 2009.09139",
        formula="score[i,j] += (1 + gamma_j) A_n[i,j] + beta_j inside block n",
        cost="O(1) per pair",
        summary="a learned table on diagonal blocks, moved by the task",
        options=options_of(CamtlConfig),
    )

    task: Tensor | int | None

    def __init__(self, config: CamtlConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.width = -(-config.limit // config.blocks)
        shape = (config.blocks, self.width, self.width)
        self.table = nn.Parameter(normal(shape, generator, SPREAD))
        self.embedding = self.to_columns = None
        if config.tasks:
            self.embedding = nn.Parameter(normal((config.tasks, config.size), generator))
            self.to_columns = linear(config.size, 2 * self.width, generator, bias=True, gain=SPREAD)
        self.task = 0 if config.tasks else None

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """Raises MapformersError for a task that the term does not know, or tasks of another batch."""
        if self.task is not None:
            task, batch = torch.as_tensor(self.task), call.plain_q.shape[0]
            tasks = self.config.tasks
            require(tasks > 0, "camtl: task needs embeddings, got tasks=0; give tasks=2 for example")
            require(
                task.shape in ((), (1,), (batch,)),
                f"camtl: task must have shape ({batch},), got {tuple(task.shape)}; give one per batch row",
            )
            require(
                bool(((task >= 0) & (task < tasks)).all()),
                f"camtl: task must lie in [0, {tasks}), got {task.tolist()}; number the tasks from 0",
            )
        return super().bind(call, memory)

    def tile(self, pairs: Pairs) -> Tensor:
        """By the true positions, the same for all heads."""
        block, row, column = pairs.query // self.width, pairs.query % self.width, pairs.key % self.width
        last = torch.maximum(pairs.query, pairs.key)
        inside = (block == pairs.key // self.width) & (block >= 0) & (last < self.config.limit)
        value = self.table[block.clamp(0, self.config.blocks - 1), row, column]
        if self.task is not None:
            gamma, beta = self._columns(torch.as_tensor(self.task, device=value.device).view(-1))
            batch = pairs.batch % gamma.shape[0]
            value = (1 + gamma[batch, column]) * value + beta[batch, column]
        return torch.where(inside, value, 0.0)

    def _columns(self, task: Tensor) -> tuple[Tensor, Tensor]:
        """gamma and beta [B or 1, width] of the tasks [B or 1]."""
        assert self.embedding is not None
        assert self.to_columns is not None
        gamma, beta = self.to_columns(self.embedding[task]).chunk(2, -1)
        return gamma, beta
