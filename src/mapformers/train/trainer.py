"""transformers' Trainer with four changes: every part of the loss is metered by name, the learning rate
follows the preset, a loss that is no number stops the run, and checkpoints hold no pickles and are whole.
"""

import functools
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from mapformers.core.errors import MapformersError
from mapformers.train import checkpoint
from mapformers.train.sections import Optimiser


class Meter:
    """Running means of each part of the loss since the last reading, and how much was read meanwhile."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.count, self.seen = 0, 0

    def add(self, losses: dict[str, Tensor], size: int) -> None:
        """Count one micro-batch of `size` tokens or examples."""
        for name, loss in losses.items():
            loss = loss.detach().double()
            self.totals[name] = self.totals[name] + loss if name in self.totals else loss
        self.count, self.seen = self.count + 1, self.seen + size

    def read(self) -> tuple[dict[str, float], int]:
        """The means over all processes and what this process has read; starts anew.

        Call it on every process.
        """
        names = sorted(self.totals)
        sums = torch.stack(
            [self.totals[name] for name in names] + [torch.tensor(float(self.count), dtype=torch.float64)]
        )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        seen = self.seen
        self.totals, self.count, self.seen = {}, 0, 0
        return {name: (total / sums[-1]).item() for name, total in zip(names, sums[:-1], strict=True)}, seen


def rate_factor(plan: Optimiser, max_steps: int, step: int) -> float:
    """The share of the learning rate at optimiser step `step`, counted from 0: warm-up, then the schedule."""
    warm = plan.warmup_steps
    if step < warm:
        return (step + 1) / warm
    if plan.schedule == "inverse_sqrt":
        return math.sqrt(max(warm, 1) / max(step, 1))
    if plan.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warm) / max(1, max_steps - warm))
    left = 1.0 - done if plan.schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2
    return plan.final_ratio + (1.0 - plan.final_ratio) * left


class RunTrainer(Trainer):
    """Trainer of one run folder. FSDP and DeepSpeed keep transformers' own checkpoint format."""

    def __init__(self, plan: Optimiser, size: Callable[[dict[str, Any]], int], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.plan, self.size, self.meter = plan, size, Meter()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of the model; its parts go to the meter."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not torch.isfinite(loss):
            raise MapformersError(
                f"train: the loss must be finite, got {loss.item()} at step {self.state.global_step + 1}; "
                "lower optimiser.learning_rate or raise optimiser.warmup_steps"
            )
        self.meter.add(outputs.losses, self.size(inputs))
        return (loss, outputs) if return_outputs else loss

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """The learning rate over time, as the preset says."""
        if self.lr_scheduler is None:
            factor = functools.partial(rate_factor, self.plan, num_training_steps)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: factor(step))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint with its manifest, or none at all; the one before is deleted only afterwards."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoint.complete(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise MapformersError(_disk_message(folder, error)) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save and limit:
            for _, old in checkpoint.checkpoints(folder.parent)[:-limit]:
                shutil.rmtree(old)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights and config, without the pickled training arguments."""
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The weights: they were read, strictly, before the Trainer was made."""
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            checkpoint.save_optimizer(
                Path(output_dir) / "optimizer.safetensors", self.optimizer, self.lr_scheduler
            )

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint_folder)
        else:
            path = Path(checkpoint_folder) / "optimizer.safetensors"
            checkpoint.load_optimizer(path, self.optimizer, self.lr_scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        os.makedirs(output_dir, exist_ok=True)
        checkpoint.save_rng(Path(output_dir) / f"rng.{self.args.process_index}.safetensors")

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            path = Path(checkpoint_folder) / f"rng.{self.args.process_index}.safetensors"
            if path.is_file():  # more processes than before: their own seed
                checkpoint.load_rng(path)


def _disk_message(folder: Path, error: BaseException) -> str:
    left = checkpoint.checkpoints(folder.parent)
    last = f"{left[-1][1].name} is kept" if left else "there is none before it"
    return (
        f"checkpoint: {folder.name} must be written whole, got {str(error).splitlines()[0][:120]}; {last}, "
        "make room and go on with --resume"
    )
