"""Models on tasks beside language: each row is trained through the same code as `mapformers train`.

    python benchmarks/tasks.py digits --seeds 3                                # 6 min, 2 cores
    python benchmarks/tasks.py tones --seeds 3                                 # 15 min
    python benchmarks/tasks.py translation --seeds 1                           # 15 min
    python benchmarks/tasks.py forecast --data ETTh1.csv --seeds 1             # 10 min
    python benchmarks/tasks.py fashion --data DIR --seeds 1                    # 20 min; dataset-fashion-mnist

DIR holds the files of Debian's package. Seconds are those of training, on whatever else the machine did.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import common

from mapformers.train.run import Request, train

PATCHES = "model.input={kind: grid, patch: [80], positions: none, project: 64}"
# Whole clips: their order is the class. Three layers of a band of 6 see 1,440 samples, less than a pause.
SOUND = (
    "data.longest=16000",
    "data.batch=32",
    "data.train_examples=4000",
    "data.test_examples=500",
    PATCHES,
    "model.hidden_size=64",
    "model.num_attention_heads=4",
    "model.causal=true",
    "training.max_steps=300",
)


def layers(attention: str, repeat: int = 2) -> str:
    """A setting of the layers."""
    return f"model.layers=[{{attention: '{attention}', repeat: {repeat}}}]"


def encoder_decoder(attention: str, cross: str) -> tuple[str, ...]:
    """Settings of both stacks."""
    return (
        f"model.encoder_layers=[{{attention: '{attention}', repeat: 2}}]",
        f"model.layers=[{{attention: '{attention}', cross: '{cross}', repeat: 2}}]",
    )


def horizon(steps: int, context: int, known: int) -> tuple[str, ...]:
    """Settings of the lengths, as Informer's table has them."""
    return (
        f"data.horizon={steps}",
        f"data.context={context}",
        f"data.known={known}",
        "data.borders=[8640, 2880, 2880]",
        "training.max_steps=300",
    )


# group -> row -> preset and what is changed in it
GROUPS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "digits": {
        "perceiver": ("image-classification", ()),
        "perceiver, pixels permuted": ("image-classification", ("data.permute=true",)),
    },
    "tones": {
        "perceiver": ("audio-classification", ()),
        "routing": (
            "text-classification",
            ("data.kind=audio", *SOUND, layers("routing(clusters=4, window=64)", 3)),
        ),
        "band": ("text-classification", ("data.kind=audio", *SOUND, layers("band(window=6)", 3))),
    },
    "translation": {
        "routing and band": ("translation", ()),
        "full": ("translation", encoder_decoder("full", "full")),
    },
    "forecast": {
        "informer, 24": ("forecast", horizon(24, 96, 48)),
        "full, 24": (
            "forecast",
            ("model.encoder_layers=[{attention: full, repeat: 2}]", *horizon(24, 96, 48)),
        ),
        "informer, 168": ("forecast", horizon(168, 168, 168)),
        "full, 168": (
            "forecast",
            ("model.encoder_layers=[{attention: full, repeat: 2}]", *horizon(168, 168, 168)),
        ),
    },
    "fashion": {
        "perceiver": ("image-classification", ("data.train_examples=12000", "training.max_steps=1500")),
    },
}
SOURCES = {"digits": "digits", "tones": "tones", "translation": "grammar"}
FIGURES = {"forecast": ("mse", "mae")}


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", help="where the group is not generated")
    parser.add_argument("--rows", help="names of rows, separated by ;")
    arguments = parser.parse_args()
    data = arguments.data or SOURCES.get(arguments.group)
    if data is None:
        parser.error(f"{arguments.group} needs --data")
    rows = GROUPS[arguments.group]
    names = list(rows) if arguments.rows is None else arguments.rows.split(";")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for name in names:
                preset, changes = rows[name]
                run = Path(folder) / f"{list(rows).index(name)}-{seed}"
                result = train(Request(preset, run, data, changes, seed=seed))
                assert result is not None
                kept = ("parameters", "seconds", "score", "test", "baselines", "naive")
                runs[name].append({"seed": seed, **{key: result[key] for key in kept if key in result}})
                print(name, seed, result["test"], f"{result['seconds']:.0f} s", flush=True)
    figures = FIGURES.get(arguments.group, (runs[names[0]][0]["score"],))
    table = {
        name: {
            "parameters": found[0]["parameters"],
            "seconds": common.summary([run["seconds"] for run in found]),
            **{key: common.summary([run["test"][key] for run in found]) for key in figures},
        }
        for name, found in runs.items()
    }
    for name, row in table.items():
        shown = ", ".join(
            f"{key} {row[key]['mean']:.4f} +- {row[key]['standard_error']:.4f}" for key in figures
        )
        print(f"{name:28s} {shown}, {row['seconds']['mean']:.0f} s")
    common.write(
        common.dated(f"tasks-{arguments.group}"), {"summary": table, "runs": runs, "figures": list(figures)}
    )


if __name__ == "__main__":
    main()
