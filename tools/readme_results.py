"""The tables of results in README.md and docs/results.md, from the newest files in benchmarks/results.

python tools/readme_results.py            print them
python tools/readme_results.py --write    put them between the markers of both pages
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mapformers.study.table import sorted_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- made by tools/readme_results.py: begin -->\n"
END = "<!-- made by tools/readme_results.py: end -->\n"
LENGTHS = ("1024", "8192", "16384")
RECALL = {"recall-64-8": "8 pairs in 64 tokens", "recall-256-32": "32 pairs in 256 tokens"}
ROWS = {"full": "full", "routing": "routing", "random": "random clusters", "band": "band"}
TASKS = {
    "digits": "8 x 8 digits of scikit-learn, 189 held out; the second row sees pixels in a random order",
    "tones": "Order of three tones in raw clips of 16,000 samples, pauses beyond the reach of bands; 500",
    "translation": "A made-up pair of languages, whole sentences right, 500 held out",
    "forecast": "ETTh1, all seven columns, Informer's split, 300 steps of 32 windows, every test window",
    "fashion": "Fashion-MNIST as 784 pixels, 12,000 training images, 10,000 held out",
}
FAMILY_LENGTHS = ("1024", "2048", "8192")


def newest(name: str) -> dict[str, Any]:
    """The newest result of that name: files begin with their date."""
    files = sorted(path for path in RESULTS.glob(f"*-{name}.json") if path.name[11:] == f"{name}.json")
    found: dict[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))
    return found


class Table(NamedTuple):
    """A table: its title, the heads of its columns, rows by name, and the results that it is made of."""

    title: str
    head: list[str]
    rows: dict[str, list[str]]
    found: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """For a file: the first words of the title."""
        words = re.sub(r"<[^>]*>", "", self.title).lower()
        return "-".join(re.sub(r"[^a-z0-9]+", " ", words).split()[:6])

    @property
    def source(self) -> str:
        """Date, machine and commands."""
        machine, commands = self.found[0]["machine"], ", ".join(f"`{one['command']}`" for one in self.found)
        return (
            f"{self.found[0]['date']}, {machine['processor']}, {machine['threads']} of {machine['cores']} "
            f"cores, torch {machine['torch']}: {commands}"
        )

    def markdown(self) -> str:
        """The table with its title and its source."""
        lines = [self.head, ["---"] * len(self.head), *([name, *cells] for name, cells in self.rows.items())]
        body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"{self.title}:\n\n{body}\n\n{self.source}"


def tables() -> list[Table]:
    """Of the README: speed, then recall, then what leaks."""
    return [speed(), recall(ROWS), coin_flips()]


def more_tables() -> list[Table]:
    """Of docs/results.md: whole families."""
    rows = {row: f"`{one['spec']}`" for row, one in newest("recall-64-8")["rows"].items()}
    parts = [family_speed("sparse"), family_speed("compact"), recall(rows), duplication()]
    parts += [features(), capacity(), clusters(), set_regression()]
    return [
        *parts,
        score_terms(),
        head_studies(),
        decode_heads(),
        *other_tasks(),
        *comparisons(),
        bench(),
        audits(),
    ]


def bench() -> Table:
    """Every mechanism, and packages of others, by `mapformers bench`."""
    found = newest("bench")
    lengths = sorted({int(n) for rows in found["points"].values() for n in rows})
    rows = {}
    for name, points in found["points"].items():
        own, last = found["summary"][name], points[str(lengths[-1])]
        cells = [
            f"{point['core']['times_faster']:.1f}x" if "core" in point else point.get("red", "left out")
            for point in (points[str(n)] for n in lengths)
        ]
        crossed = own["crossover"]
        crossing = "none" if crossed is None else f"{crossed:,.0f}" if crossed else f"{lengths[0]:,} or less"
        growth = "" if own["growth_time"] is None else f"{own['growth_time']:.2f}"
        decode = last.get("decode") or points[str(lengths[-2])].get("decode")
        token = f"{1000 * decode['min']:.1f} ms" if decode else ""
        memory = f"{last['peak_mb']:,.0f} MB" if last.get("peak_mb") is not None else ""
        rows[f"`{name}`"] = [*cells, crossing, growth, token, memory]
    settings = found["settings"]
    title = (
        f"`mapformers bench`: times faster than torch's full attention, forward and backward, "
        f"{settings['heads']} heads of {settings['head_dim']}, {settings['dtype']}; tokens from which it is "
        f"faster; p in time ~ n^p; decoding one token; memory of a pass at {lengths[-1]:,} tokens. Packages "
        "of others stand below; left out: a pass would take over half a minute"
    )
    head = ["", *(f"{n:,}" for n in lengths), "faster from", "grows as", "a token", "memory"]
    return table(title, head, rows, found)


def comparisons() -> list[Table]:
    """Attentions beside each other in one model, by `mapformers compare`."""
    return [
        comparison(
            "mqar",
            "8 pairs in 64 tokens, 800 steps; then the accuracy among irrelevant tokens, of which training "
            "had none",
        ),
        comparison("stdlib", "bytes of Python's library, three of four layers, 512 tokens, 200 steps"),
    ]


def comparison(task: str, said: str) -> Table:
    """Score, speed and parameters of each attention, the best first."""
    found = newest(f"compare-{task}")
    rows, shares = {}, []
    for spec, row in sorted_rows(found):
        one = row["summary"]
        shares = [share for share in one.get("robustness", {}) if float(share)]
        recalled = [f"{one['robustness'][share]['mean']:.3f}" for share in shares]
        score = f"{one['score']['mean']:.3f} +- {one['score']['standard_error']:.3f}"
        rows[f"`{spec}`"] = [score, *recalled, f"{one['speed']:,.0f}", f"{row['parameters']:,}"]
        unit, counted = one["unit"], next(iter(row["runs"].values()))["counted"]
    seeds = max(len(row["runs"]) for row in found["rows"].values())
    title = (
        f"`mapformers compare {task}`: {said}; mean and standard error over {seeds} seeds, the same start, "
        "data and order for all"
    )
    head = ["", unit, *(f"{100 * float(share):.0f} % irrelevant" for share in shares)]
    return table(title, [*head, f"{counted} per second", "parameters"], rows, found)


def audits() -> Table:
    """What later tokens do to earlier outputs, in packages of others and in the map."""
    ours, found = newest("audit"), newest("audit-peers")
    rows = {}
    for one in found["subjects"]:
        worst = {kind: _worst(one, kind) for kind in ("future: ", "future: gradient", "batch: ")}
        rows[f"{one['subject'].partition(':')[0]} {one['version']}"] = [
            *("-" if value is None else f"{value:.1e}" for value in worst.values()),
            " ".join(one["explanations"]) or "passed",
        ]
    passed = sum(one["passed"] for one in ours["subjects"])
    largest = max(_worst(one, "future: ") or 0.0 for one in ours["subjects"])
    title = (
        '<a id="the-audit"></a>The audit: how far outputs move when what must not matter changes, beside the '
        "largest output. "
        f"Packages of others below; of the map {passed} of {len(ours['subjects'])} entries pass "
        f"(`{ours['command']}`), and later tokens move earlier outputs by {largest:.0e} at most"
    )
    columns = ["package", "later tokens change", "derivative by later tokens", "other rows", "finding"]
    return table(title, columns, rows, found)


def _worst(subject: dict[str, Any], kind: str) -> float | None:
    """The largest change of a kind of check; derivatives are not counted among changes of tokens."""
    measured = [
        row["measured"]
        for row in subject["rows"]
        if row["name"].startswith(kind) and (kind != "future: " or row["name"] != "future: gradient")
    ]
    return max(measured, default=None)


def score_terms() -> Table:
    """Time of a band with a score term beside the band without one."""
    found = newest("score-terms")
    settings = found["settings"]
    rows = {
        name: [f"{1000 * row['min']:.0f} ms", f"{row['ratio']:.2f}x"] for name, row in found["rows"].items()
    }
    title = (
        f"Score terms on a band of {settings['window']}, {settings['length']:,} tokens, 8 heads of 64, "
        "forward and backward with the gradients of the term. Those of the distance run through the native "
        "kernel's table"
    )
    return table(title, ["term", "time", "beside no term"], rows, found)


def head_studies() -> Table:
    """Small byte models beside their plain twins."""
    found = newest("head-studies")
    rows = {
        name: [f"{row['parameters']:,}", "{mean:.3f} ± {standard_error:.3f}".format(**row["bits_per_byte"])]
        for name, row in found["summary"].items()
    }
    seeds = len(next(iter(found["runs"].values())))
    spans = [run["spans"] for run in found["runs"].get("adaptive span", [])]
    means = [sum(sum(layer) / len(layer) for layer in each) / len(each) for each in zip(*spans, strict=True)]
    title = (
        f"Small models of bytes, 150 steps of 2,048 bytes of Python's standard library, {seeds} seeds: bits "
        "per byte on held-out files. Mean spans learned from layer 1 upwards: "
        + ", ".join(f"{mean:.0f}" for mean in means)
        + " of 256 tokens"
    )
    return table(title, ["model", "parameters", "bits per byte"], rows, found)


def other_tasks() -> list[Table]:
    """Tasks beside language: each group of which there is a result."""
    return [
        task_group(name, title) for name, title in TASKS.items() if any(RESULTS.glob(f"*-tasks-{name}.json"))
    ]


def task_group(name: str, title: str) -> Table:
    """The rows of a group, and those that need no model."""
    found = newest(f"tasks-{name}")
    figures = found["figures"]
    rows = {}
    for row, one in found["summary"].items():
        cells = [f"{one['parameters']:,}"]
        cells += ["{mean:.3f} ± {standard_error:.3f}".format(**one[key]) for key in figures]
        rows[row] = cells
    for row, runs in found["runs"].items():
        for other, figure in runs[0].get("naive", {}).items():
            horizon = row.rpartition(", ")[2]
            rows[f"{other}, {horizon}"] = ["", *(f"{figure[key]:.3f}" for key in figures)]
        if "naive" not in runs[0]:
            for other, value in runs[0]["baselines"].items():
                rows[other] = ["", f"{value:.3f}", *([""] * (len(figures) - 1))]
    seeds = len(next(iter(found["runs"].values())))
    title = f"{title} ({seeds} seed{'s' if seeds > 1 else ''})"
    return table(title, ["model", "parameters", *(key.replace("_", " ") for key in figures)], rows, found)


def decode_heads() -> Table:
    """Cache and time with fewer key/value heads."""
    found = newest("decode-heads")
    first = found["decode"]["multi_head"]
    rows = {
        f"`{name}`": [
            f"{row['cache_bytes'] / 2**20:.0f} MiB",
            f"{first['cache_bytes'] / row['cache_bytes']:.0f}x",
            f"{1000 * row['seconds']:.1f} ms",
        ]
        for name, row in found["decode"].items()
    }
    steps = "; ".join(f"{name} {1000 * row['seconds']:.0f} ms" for name, row in found["train"].items())
    title = (
        f"One layer of full attention, 8 heads of 64, after {found['settings']['tokens']:,} tokens: keys and "
        f"values kept, and time of a token. Forward and backward of 4 x 512 tokens: {steps}"
    )
    return table(title, ["projection", "kept", "smaller", "a token"], rows, found)


def features() -> Table:
    """Error of random features by their number."""
    found = newest("features")
    rows = {name: [f"{one['mean']:.4f}" for one in row.values()] for name, row in found["rows"].items()}
    settings = found["settings"]
    title = (
        f"Random features instead of softmax: relative error of the output over {settings['seeds']} draws, "
        f"queries and keys of standard deviation {settings['scale']} ([curve](pictures/features.png))"
    )
    return table(title, ["random rows", *(f"{m:,}" for m in settings["counts"])], rows, found)


def capacity() -> Table:
    """Error of retrieval by the number of keys, for keys written once and twice."""
    found = newest("capacity")
    tasks = {task: found["settings"][task].split(",") for task in ("unique", "rewritten")}
    rows = {
        name: [f"{row[task][n]['error']['mean']:.3f}" for task, counts in tasks.items() for n in counts]
        for name, row in found["rows"].items()
    }
    head = [f"{n} keys" if task == "unique" else f"{n} twice" for task, ns in tasks.items() for n in ns]
    title = (
        "Retrieval from a sum and from the delta rule, 64 channels: share of the squared error left, keys "
        f"written once or twice, {found['settings']['seeds']} seeds ([curve](pictures/capacity.png))"
    )
    return table(title, ["", *head], rows, found)


def clusters() -> Table:
    """Error of clustered attention in a trained encoder."""
    found = newest("clusters")
    rows = {
        name: [f"{one['error']:.3f}" for one in row.values()]
        for name, row in found["rows"].items()
        if name != "full"
    }
    title = (
        f"Clustered attention in a trained encoder, {found['settings']['length']} tokens: relative error of "
        "the attention output by the number of clusters ([curve](pictures/clusters.png))"
    )
    return table(title, ["", *map(str, found["settings"]["clusters"])], rows, found)


def set_regression() -> Table:
    """The maximum of a set, by encoder and pooling."""
    found = newest("set-regression")
    rows = {
        name: [f"{one['error']['mean']:.2f} ± {one['error']['standard_error']:.2f}"]
        for name, one in found["rows"].items()
    }
    title = (
        "The maximum of 1 to 10 numbers in [0, 100): mean absolute error over "
        f"{found['settings']['seeds']} seeds; encoder and pooling (sab: all pairs, isab: through learned "
        f"points, ff: each number by itself). A constant gives {found['constant']:.1f}"
    )
    return table(title, ["", "error"], rows, found)


def family_speed(family: str) -> Table:
    """Forward and backward beside SDPA, where that is crossed, and memory."""
    found = newest(f"speed-{family}")
    shortest = min(int(n) for n in found["seconds"])
    rows = {}
    longest = max(found["peak_mb"], key=int)  # of which the memory is shown
    for name, peak in found["peak_mb"][longest].items():
        times = [found["seconds"][n][name] for n in FAMILY_LENGTHS]
        faster = [f"{one['times_faster']:.1f}x" if "times_faster" in one else "" for one in times]
        crossed = found["crossover"].get(name, "")
        if crossed is None:
            crossed = "none"
        elif crossed != "":
            crossed = f"{crossed:,.0f} tokens" if crossed else f"{shortest} tokens or less"
        rows[name] = [*faster, crossed, f"{peak:,.0f} MB"]
    return table(
        "Times faster than torch's SDPA, causal or bidirectional as the mechanism is, forward and backward, "
        "batch 1, 8 heads of 64, float32; the shortest length at which it is faster; and what a pass adds to "
        "the memory in use. Blocks run with their projections, so beside nothing",
        ["", *(f"{int(n):,} tokens" for n in FAMILY_LENGTHS), "faster from", f"memory at {int(longest):,}"],
        rows,
        found,
    )


def duplication() -> Table:
    """Accuracy of every trained row by what it is evaluated with."""
    found = newest("duplication-256")
    seen = list(next(iter(found["rows"].values()))["by_rounds"])
    titles = [one if one == "full" else f"{one} round" + "s" * (one != "1") for one in seen]
    rows = {
        f"trained with {row}": [f"{one['by_rounds'][other]['mean']:.4f}" for other in seen]
        for row, one in found["rows"].items()
    }
    seeds = len(next(iter(found["rows"].values()))["runs"])
    return table(
        f"Duplication at 256 tokens (Reformer, section 2): accuracy over {seeds} seeds, seen by full "
        "attention or so many rounds of hashing",
        ["", *titles],
        rows,
        found,
    )


def speed() -> Table:
    """Forward and backward beside causal SDPA."""
    found = newest("speed")
    rows = {
        name: [f"{found['seconds'][n][name]['times_faster']:.1f}x" for n in LENGTHS]
        for name in found["growth"]
    }
    setting = found["setting"]
    return table(
        f"Times faster than torch's causal SDPA, forward and backward, batch {setting['batch']}, "
        f"{setting['heads']} heads of {setting['head_dim']}, window {setting['window']}, {setting['dtype']}",
        ["", *(f"{int(n):,} tokens" for n in LENGTHS)],
        rows,
        found,
    )


def recall(titles: dict[str, str]) -> Table:
    """Mean accuracy over seeds, with its standard error, of the rows named; empty where one was not run."""
    found = [newest(name) for name in RECALL]

    def cell(row: dict[str, Any] | None) -> str:
        return "" if row is None else f"{row['mean']:.3f} ± {row['standard_error']:.3f}"

    rows = {title: [cell(one["rows"].get(row)) for one in found] for row, title in titles.items()}
    seeds = len(found[0]["rows"]["full"]["runs"])
    return table(
        f"Multi-query associative recall, pairs out of the band's reach: accuracy over {seeds} seeds, equal "
        "parameters and steps",
        ["", *RECALL.values()],
        rows,
        *found,
    )


def coin_flips() -> Table:
    """The loss on fresh coin flips: nobody who sees only the past gets below ln 2."""
    found = newest("coin-flips")
    rows = {}
    for name, title in (("strict", "routing, strict"), ("paper", "routing, as published")):
        check = found["rows"][name]["runs"][0]["checks"][-1]
        below = (found["chance"] - check["loss"]) / check["standard_error"]
        rows[title] = [f"{check['loss']:.5f} ± {check['standard_error']:.5f}", f"{below:.1f}"]
    return table(
        f"Loss on fresh coin flips after training; only who sees the future gets below ln 2 = "
        f"{found['chance']:.5f}",
        ["", "loss", "standard errors below"],
        rows,
        found,
    )


def table(title: str, head: list[str], rows: dict[str, list[str]], *found: dict[str, Any]) -> Table:
    """A table out of results."""
    return Table(title, head, rows, found)


PAGES: dict[Path, Callable[[], list[Table]]] = {
    ROOT / "README.md": tables,
    ROOT / "docs" / "results.md": more_tables,
}


def written(page: Path) -> str:
    """The page as it should read."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = "\n\n".join(one.markdown() for one in PAGES[page]())
    return f"{before}{BEGIN}\n{text}\n\n{END}{after}"


if __name__ == "__main__":
    for path, made in PAGES.items():
        if "--write" in sys.argv:
            path.write_text(written(path), encoding="utf-8")
        else:
            print("\n\n".join(one.markdown() for one in made()))
