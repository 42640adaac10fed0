"""One training run: check everything, make or reopen the folder, train through Trainer, score, write the
report.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PrinterCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from mapformers.core.errors import require
from mapformers.models.strict import field_types
from mapformers.train import folder as folders
from mapformers.train.callbacks import Centroids, Metrics, MetricsFile, Validation
from mapformers.train.checkpoint import remove_incomplete
from mapformers.train.folder import RunFolder
from mapformers.train.loading import check_start, quiet, start_weights
from mapformers.train.models import config_of, model_class
from mapformers.train.precision import settle_precision
from mapformers.train.presets import Preset, at_stage, load_preset, override, with_attention
from mapformers.train.progress import RunProgress
from mapformers.train.results import score_run
from mapformers.train.trainer import RunTrainer

KEEP = 2  # checkpoints


@dataclass(frozen=True)
class Request:
    """What the command line asks for. `preset` may be None only together with `resume`."""

    preset: str | None
    output: Path
    data: str | None = None
    settings: tuple[str, ...] = ()
    max_steps: int | None = None
    seed: int | None = None
    resume: bool = False
    stage: int = 1
    start_from: Path | None = None
    attention: str | None = None


def train(request: Request) -> dict[str, Any] | None:
    """Run it to the end; returns the results on the first process and None on the others.

    Raises MapformersError for bad input, before anything is written.
    """
    quiet()
    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        run, config = _prepare(request, state)
        seconds = _train(run, config, state.is_main_process)
        return score_run(run, seconds) if state.is_main_process else None
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _prepare(request: Request, state: PartialState) -> tuple[RunFolder, Any]:
    """The folder of the run, made or reopened by the first process, and the config of its model."""
    asked = _asked(request)
    resuming = request.resume and folders.holds_run(request.output)
    require(
        resuming or asked is not None,
        f"train: {request.output} must hold a run to resume, got none; name a preset to start one",
    )
    if resuming:
        run = folders.resume_run(request.output, asked, _max_steps(request, asked))
    else:
        folders.check_free(request.output)
        run = RunFolder(request.output, asked)  # type: ignore[arg-type]
    if not resuming:
        config_of(run.preset)  # refused before anything is written
        check_start(run.preset)
    state.wait_for_everyone()  # all have looked before the first one writes
    if state.is_main_process:
        if resuming:
            run.write_config()
            for name in remove_incomplete(run.path):
                _say(f"{name} was cut off and is removed")
        else:
            folders.create_run(run.path, run.preset)
            _say(f"new run in {run.path}")
        _say(run.task.describe(run.data))
    state.wait_for_everyone()
    return run, config_of(run.preset, run.data)


def _asked(request: Request) -> Preset | None:
    """The preset of the request with its options applied; None when it names none."""
    if request.preset is None:
        options = {"--data": request.data, "--set": request.settings or None, "--seed": request.seed}
        options |= {"--attention": request.attention}
        options |= {"--from": request.start_from, "--stage": None if request.stage == 1 else request.stage}
        given = ", ".join(name for name, value in options.items() if value is not None)
        require(
            not given, f"train: a preset must be named beside {given}, got none; name it or drop the option"
        )
        return None
    preset = at_stage(load_preset(request.preset), request.stage)
    if request.attention is not None:
        preset = with_attention(preset, request.attention)
    preset = override(preset, request.settings)
    if request.data is not None:
        preset = replace(preset, data=replace(preset.data, source=request.data))
    start = None if request.start_from is None else str(request.start_from)
    changes = {"max_steps": request.max_steps, "seed": request.seed, "start_from": start}
    given_changes = {name: value for name, value in changes.items() if value is not None}
    return settle_precision(replace(preset, training=replace(preset.training, **given_changes)))


def _max_steps(request: Request, asked: Preset | None) -> int | None:
    """The number of steps that the command line asks for by itself, None = as the run was started."""
    if asked is not None and any(setting.startswith("training.max_steps=") for setting in request.settings):
        return asked.training.max_steps
    return request.max_steps


def _train(run: RunFolder, config: Any, first: bool) -> float:
    """Train from the newest checkpoint to the last step; returns the seconds it took."""
    preset, last, began = run.preset, run.last_checkpoint(), time.monotonic()
    done = last[0] if last else 0
    if done >= preset.training.max_steps:
        return 0.0
    set_seed(preset.training.seed)
    model = _start(preset, config) if last is None else _reload(preset, last[1], config)
    feed = run.task.feed(preset, run.data)
    trainer = RunTrainer(
        preset.optimiser,
        run.task.size,
        model=model,
        args=_arguments(preset, run.path),
        train_dataset=feed.rows,
        data_collator=feed.collate,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Centroids())
    with _reporting(trainer, run, done) if first else contextlib.nullcontext():
        if not first:
            trainer.add_callback(Metrics(trainer.meter, run.task, None, None))
        trainer.train(resume_from_checkpoint=str(last[1]) if last else None)
    return time.monotonic() - began


@contextlib.contextmanager
def _reporting(trainer: RunTrainer, run: RunFolder, done: int) -> Iterator[None]:
    """What only the first process does: metrics, progress, validation."""
    preset = run.preset
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    _say(
        f"{preset.name}: {_extent(trainer.model.config)}, {parameters:,} parameters, "
        f"steps {done + 1:,} to {preset.training.max_steps:,}"
    )
    file, progress = MetricsFile(run.metrics), RunProgress(preset.training.max_steps, done)
    file.truncate(done)
    trainer.add_callback(Validation(run, preset.training.eval_every, file, progress))
    trainer.add_callback(Metrics(trainer.meter, run.task, file, progress))
    try:
        yield
    finally:
        progress.close()


def _start(preset: Preset, config: Any) -> Any:
    """A new model, with the weights of another run where the preset names one."""
    model = model_class(preset)(config)
    if preset.training.start_from is not None:
        model.load_state_dict(start_weights(Path(preset.training.start_from), model_class(preset), config))
    return model


def _extent(config: Any) -> str:
    """How deep a model is."""
    if hasattr(config, "latents"):
        depth = (
            f"{config.blocks} blocks of {config.depth}" if hasattr(config, "blocks") else len(config.layers)
        )
        return f"{config.latents} latents, {depth} layers"
    return f"{len(config.layers)} layers, length {config.max_position_embeddings:,}"


def _reload(preset: Preset, folder: Path, config: Any) -> Any:
    """The model of a checkpoint, which must be the one the run asks for."""
    model = model_class(preset).from_pretrained(folder)
    for name in field_types(type(config)):
        held, asked = getattr(model.config, name, None), getattr(config, name, None)
        require(
            held == asked,
            f"checkpoint: {folder} must hold the model of config.yaml, got {name}={held!r}; it belongs to "
            "another run",
        )
    return model


def _arguments(preset: Preset, output: Path) -> TrainingArguments:
    """The run in the words of transformers."""
    training, optimiser = preset.training, preset.optimiser
    return TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=preset.data.batch,
        gradient_accumulation_steps=training.accumulate,
        max_steps=training.max_steps,
        learning_rate=optimiser.learning_rate,
        weight_decay=optimiser.weight_decay,
        adam_beta1=optimiser.betas[0],
        adam_beta2=optimiser.betas[1],
        max_grad_norm=optimiser.clip,
        logging_steps=training.log_every,
        logging_nan_inf_filter=False,
        save_steps=training.save_every,
        save_total_limit=KEEP,
        seed=training.seed,
        bf16=training.precision == "bfloat16",
        activation_checkpointing=training.activation_checkpointing,
        train_sampling_strategy="sequential",  # the task's data set draws the order itself
        remove_unused_columns=False,  # a task hands over what its model takes
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cache=True,  # as the config says: False would be saved with the model
        use_cpu=not torch.cuda.is_available(),
        ddp_broadcast_buffers=False,  # pending statistics differ by process
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to="none",
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
