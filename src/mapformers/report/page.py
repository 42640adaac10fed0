"""report.html: one file about one run. No scripts, no network; everything that came from a model or a file
is escaped.
"""

import html
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mapformers.report.plots import line_chart
from mapformers.report.results import RunRecord, read_run
from mapformers.tasks.corpus import write_text

TELEMETRY = {
    "occupancy_entropy": (
        "Occupancy entropy",
        "How evenly the clusters are used: 1 = all alike, 0 = one takes everything.",
    ),
    "dead_clusters": (
        "Dead clusters",
        "Clusters per head that get next to nothing; they are revived from recent tokens.",
    ),
    "mean_horizon": (
        "Mean horizon",
        "How many tokens back a routed query sees on average; larger = longer memory.",
    ),
    "centroid_drift": (
        "Centroid drift",
        "How far the centroids turned at the last update (1 - cosine); it should settle.",
    ),
}
BASELINES = {
    "unigram": "unigram: how often each byte occurs",
    "ngram": "order-5 n-gram (interpolated Witten-Bell)",
    "xz": "xz that has read the training bytes",
}


def write_report(folder: Path) -> Path:
    """Write report.html into a run folder from what the run has recorded so far."""
    path = folder / "report.html"
    write_text(path, page(read_run(folder)))
    return path


def page(run: RunRecord) -> str:
    """The whole page."""
    style = (resources.files("mapformers.report") / "style.css").read_text(encoding="utf-8")
    title = html.escape(f"{run.config.get('name', '')} · {run.name}")
    body = "".join(
        [_head(run), _comparison(run), _curves(run), _telemetry(run), _samples(run), _data(run), _config(run)]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body>{body}</body></html>\n"
    )


def _head(run: RunRecord) -> str:
    results, config = run.results, run.config
    step = results.get("step") or (run.steps[-1]["step"] if run.steps else 0)
    tiles = []
    if results:
        tiles.append((f"held-out {run.unit}", f"{results['test'][run.score]:.3f}"))
        tiles.append(("parameters", f"{results['parameters']:,}"))
    elif run.checks:
        tiles.append((f"validation {run.unit}", f"{run.checks[-1]['valid_' + run.score]:.3f}"))
    tiles.append(("steps", f"{step:,} of {config['training']['max_steps']:,}"))
    if run.score == "bits_per_byte":
        tiles.append(("context in bytes", f"{config['data']['context']:,}"))
    cells = "".join(
        f'<div class="tile"><b>{html.escape(value)}</b>{html.escape(name)}</div>' for name, value in tiles
    )
    title, summary = html.escape(run.name), html.escape(config.get("summary", ""))
    return f'<h1>{title}</h1><p>{summary}</p><div class="tiles">{cells}</div>'


def _comparison(run: RunRecord) -> str:
    results = run.results
    if not results:
        return "<p>The run has not been scored yet: that happens after its last step.</p>"
    test = results["test"]
    rows = [("this model", test[run.score])]
    rows += [(BASELINES.get(key, key), value) for key, value in results["baselines"].items()]
    table = "".join(
        f'<tr><td>{html.escape(text)}</td><td class="number">{value:.3f}</td></tr>' for text, value in rows
    )
    if "prefix" not in results:
        more = [(key, value) for key, value in test.items() if key != run.score and key != "examples"]
        others = "".join(
            f'<tr><td>{html.escape(key)}</td><td class="number">{_number(value)}</td></tr>'
            for key, value in more
        )
        return (
            f"<h2>Held-out {html.escape(run.unit)}</h2><p>On {test['examples']:,} examples that were not "
            f"trained on.</p><table>{table}</table><table>{others}</table>"
        )
    prefix = results["prefix"]
    verdict = "they agree" if prefix["agrees"] else "they do NOT agree: this model sees what it should not"
    how = "token by token with its cache" if prefix["method"] == "cache" else "each prefix by itself"
    return (
        "<h2>Held-out bits per byte</h2>"
        "<p>The mean number of bits needed for one byte of text that was not trained on: lower is better. "
        f"{test['bytes']:,} "
        f"bytes, every byte but the first, in windows of {test['context']:,} that move on by "
        f"{test['stride']:,}.</p>"
        f"<table>{table}</table>"
        f"<p>Trust check: the first {prefix['positions']:,} bytes scored {how} give "
        f"{prefix['prefix_only']:.5f}, scored in one "
        f"pass {prefix['teacher_forced']:.5f}; difference {prefix['difference']:.1e}: {verdict}.</p>"
    )


def _curves(run: RunRecord) -> str:
    marks = {name: value for name, value in run.results.get("baselines", {}).items() if name != "unigram"}
    series = {"training": run.curve(run.score), "validation": run.check_curve(f"valid_{run.score}")}
    losses = {"training": run.curve("loss"), "validation": run.check_curve("valid_loss")}
    speed = run.speed()
    parts = [
        _figure(
            run.unit.capitalize(),
            "Training is the mean since the point before; validation is on held-out data. "
            "Dashed: the simple models above.",
            line_chart(series, "step", run.unit, marks),
        ),
        _figure(
            "Loss",
            "What is minimised, without auxiliary losses.",
            line_chart(losses, "step", "loss") if run.score != "bits_per_byte" else "",
        ),
        _figure(
            "Learning rate",
            "The step size of the optimiser.",
            line_chart({"learning rate": run.curve("learning_rate")}, "step", "learning rate"),
        ),
        _figure(
            "Speed",
            "How much is trained on per second, all processes together.",
            line_chart({speed.replace("_", " "): run.curve(speed)}, "step", speed.replace("_", " ")),
        ),
    ]
    losses = {name: run.curve(f"losses.{name}") for name in run.auxiliary()}
    parts.append(
        _figure(
            "Auxiliary losses",
            "Summed over layers, before their weights. Commitment: how far tokens lie from "
            "the centroid of their cluster.",
            line_chart(losses, "step", "loss"),
        )
    )
    return "<h2>Training</h2>" + "".join(parts) if any(parts) else ""


def _telemetry(run: RunRecord) -> str:
    parts = [
        _figure(title, meaning, line_chart(run.telemetry(key), "step", title.lower()))
        for key, (title, meaning) in TELEMETRY.items()
    ]
    return "<h2>Clusters of the routing layers</h2>" + "".join(parts) if any(parts) else ""


def _samples(run: RunRecord) -> str:
    made = [line for line in run.checks if line.get("sample")]
    if not made:
        return ""
    chosen = {id(line): line for line in (made[0], made[len(made) // 2], made[-1])}.values()
    parts = [
        f"<h3>step {line['step']:,}</h3><pre><span "
        f'class="prompt">{html.escape(line["sample"]["prompt"])}</span>'
        f"{html.escape(line['sample']['text'])}</pre>"
        for line in chosen
    ]
    prompted = any(line["sample"]["prompt"] for line in made)
    meaning = (
        "Grey: the beginning of the validation text. After it: bytes drawn from the model at temperature 0.7."
        if prompted
        else "What the model made of held-out inputs, or from nothing, during the run."
    )
    return f"<h2>What it makes</h2><p>{meaning}</p>" + "".join(parts)


def _data(run: RunRecord) -> str:
    facts = run.facts
    if not facts:
        return ""
    rows: list[tuple[str, Any]] = [
        ("source", facts["source"]),
        ("split", facts["rule"]),
        *((key, f"{facts[key]:,}") for key in ("files", "bytes", "examples") if key in facts),
        *((key, ", ".join(map(str, facts[key][:20]))) for key in ("classes",) if key in facts),
        ("SHA-256", facts["sha256"]),
        ("Python", facts["python"]),
    ]
    for name, part in facts["splits"].items():
        rows += [(f"{name} {key}", f"{value:,}") for key, value in part.items() if isinstance(value, int)]
    table = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>" for name, value in rows
    )
    return (
        f'<h2>Data</h2><table>{table}</table><p class="soft">Numbers compare only between runs with the '
        "same SHA-256 of their data.</p>"
    )


def _config(run: RunRecord) -> str:
    deviations = "".join(f"<li>{html.escape(text)}</li>" for text in run.config.get("deviations", []))
    listed = f"<p>Deviations from what was published:</p><ul>{deviations}</ul>" if deviations else ""
    text = yaml.safe_dump(
        {k: v for k, v in run.config.items() if k != "deviations"}, sort_keys=False, width=80
    )
    details = f"<details><summary>config.yaml</summary><pre>{html.escape(text)}</pre></details>"
    return f"<h2>Settings</h2>{listed}{details}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _figure(title: str, meaning: str, svg: str) -> str:
    return f'<h3>{html.escape(title)}</h3><p class="soft">{html.escape(meaning)}</p>{svg}' if svg else ""
