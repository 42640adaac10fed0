"""What `compare` knows by a short name: a preset, its sizes for a study, and where the attention goes."""

from dataclasses import dataclass

from mapformers.core.errors import require_known
from mapformers.train.presets import preset_names


@dataclass(frozen=True)
class StudyTask:
    """A preset, settings of it, and the layers that take the attention, None = all that can.

    The other layers stay as the preset has them, the same in all rows.
    """

    preset: str
    settings: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    lower_is_better: bool = False


_STDLIB_LAYERS = "[{attention: band(window=32)}, {attention: full}, {attention: full}, {attention: full}]"
TASKS = {
    "stdlib": StudyTask(
        "demo",
        (
            "model.hidden_size=128",
            "model.num_attention_heads=4",
            "model.intermediate_size=512",
            f"model.layers={_STDLIB_LAYERS}",
            "data.context=512",
            "data.batch=4",
            "data.train_bytes=2000000",
            "data.test_bytes=50000",
            "data.valid_bytes=8192",
            "training.max_steps=200",
            "training.eval_every=200",
            "training.save_every=200",
            "training.precision=float32",
        ),
        (1, 2, 3),
        lower_is_better=True,
    ),
    "mqar": StudyTask("mqar", ("training.eval_every=400", "training.save_every=800"), (1,)),
    "passkey": StudyTask("passkey", (), (2,)),
}


def task_of(name: str) -> StudyTask:
    """A task by its short name, or any preset with the attention in all layers that take it.

    Raises MapformersError with the nearest names.
    """
    require_known("compare", "task", name, [*TASKS, *preset_names()])
    return TASKS.get(name, StudyTask(name))


def map_attentions(length: int) -> tuple[str, ...]:
    """Causal attentions of the map at comparable sizes for sequences of about `length` tokens.

    Those by position and content see length / 4 keys or fewer; `full` is there to compare with.
    """
    window, block = max(8, length // 8), max(4, length // 16)
    clusters = max(4, length // 32)
    return (
        "full",
        f"band(window={window})",
        f"routing(clusters={clusters}, window={2 * window})",
        f"reformer(buckets={clusters}, window={2 * window}, rounds=2)",
        f"moba(block={block}, top=2)",
        f"nsa(block={block}, top=2, window={window})",
        f"longformer(window={window}, global_tokens=8)",
        f"strided(stride={block})",
        f"sparse_transformer(pattern=fixed, stride={window}, summary=2)",
        f"dilated(window={window // 2}, dilation=4)",
        "linear",
        "performer(features=64)",
        "rfa(features=32)",
        "delta",
        "memory_compressed(stride=3)",
    )
