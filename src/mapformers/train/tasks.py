"""The tasks by name; `sections.DATA` says what each reads."""

from mapformers.train.classification import Classification
from mapformers.train.language_model import LanguageModel
from mapformers.train.presets import Preset
from mapformers.train.task import Task

TASKS: dict[str, Task] = {
    "language-model": LanguageModel(),
    "classification": Classification(),
}


def task_of(preset: Preset) -> Task:
    """The task of a preset."""
    return TASKS[preset.task]
