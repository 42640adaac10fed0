"""The README's tables of measured results, made from the newest files in benchmarks/results.

python tools/readme_results.py            print them
python tools/readme_results.py --write    put them between the markers in README.md
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- made by tools/readme_results.py: begin -->\n"
END = "<!-- made by tools/readme_results.py: end -->\n"
LENGTHS = ("1024", "8192", "16384")
RECALL = {"recall-64-8": "8 pairs in 64 tokens", "recall-256-32": "32 pairs in 256 tokens"}
ROWS = {"full": "full", "routing": "routing", "random": "random clusters", "band": "band"}


def newest(name: str) -> dict[str, Any]:
    """The newest result of that name: files begin with their date."""
    files = sorted(path for path in RESULTS.glob(f"*-{name}.json") if path.name[11:] == f"{name}.json")
    found: dict[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))
    return found


def tables() -> str:
    """Speed, then recall, then what leaks."""
    return "\n\n".join((speed(), recall(), coin_flips())) + "\n"


def speed() -> str:
    """Forward and backward beside causal SDPA."""
    found = newest("speed")
    rows = {
        name: [f"{found['seconds'][n][name]['times_faster']:.1f}x" for n in LENGTHS]
        for name in found["peak_mb"][LENGTHS[0]]
    }
    setting = found["setting"]
    return table(
        f"Times faster than torch's causal SDPA, forward and backward, batch {setting['batch']}, "
        f"{setting['heads']} heads of {setting['head_dim']}, window {setting['window']}, {setting['dtype']}",
        ["", *(f"{int(n):,} tokens" for n in LENGTHS)],
        rows,
        found,
    )


def recall() -> str:
    """Mean accuracy over seeds, with its standard error."""
    found = [newest(name) for name in RECALL]
    rows = {
        title: [f"{one['rows'][row]['mean']:.3f} ± {one['rows'][row]['standard_error']:.3f}" for one in found]
        for row, title in ROWS.items()
    }
    seeds = len(found[0]["rows"]["full"]["runs"])
    return table(
        f"Multi-query associative recall, pairs out of the band's reach: accuracy over {seeds} seeds, equal "
        "parameters and steps",
        ["", *RECALL.values()],
        rows,
        *found,
    )


def coin_flips() -> str:
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


def table(title: str, head: list[str], rows: dict[str, list[str]], *found: dict[str, Any]) -> str:
    """A Markdown table with where it comes from."""
    machine = found[0]["machine"]
    lines = [head, ["---"] * len(head), *([f"{name}", *cells] for name, cells in rows.items())]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    commands = ", ".join(f"`{one['command']}`" for one in found)
    return (
        f"{title}:\n\n{body}\n\n{found[0]['date']}, {machine['processor']}, {machine['threads']} of "
        f"{machine['cores']} cores, torch {machine['torch']}: {commands}"
    )


def written() -> str:
    """README.md as it should read."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(written(), encoding="utf-8")
    else:
        print(tables(), end="")
