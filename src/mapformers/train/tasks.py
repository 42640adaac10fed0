"""The tasks by name; `sections.DATA` says what each reads."""

from mapformers.train.answers import Answers
from mapformers.train.classification import Classification
from mapformers.train.forecasting import Forecasting
from mapformers.train.image_generation import ImageGeneration
from mapformers.train.language_model import LanguageModel
from mapformers.train.masked_language_model import MaskedLanguageModel
from mapformers.train.presets import Preset
from mapformers.train.task import Task
from mapformers.train.translation import Translation

TASKS: dict[str, Task] = {
    "language-model": LanguageModel(),
    "answers": Answers(),
    "classification": Classification(),
    "forecasting": Forecasting(),
    "image-generation": ImageGeneration(),
    "masked-language-model": MaskedLanguageModel(),
    "translation": Translation(),
}


def task_of(preset: Preset) -> Task:
    """The task of a preset."""
    return TASKS[preset.task]
