"""Copy the newest results of the public commands into the package, where the chooser and the map read them.

python tools/ship_results.py            say which are older than benchmarks/results
python tools/ship_results.py --write    copy them
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHIPPED = ROOT / "src" / "mapformers" / "measure" / "results"
NAMES = ("bench", "audit", "audit-peers", "compare-mqar", "compare-stdlib")
DATE = len("2026-01-01-")


def newest() -> dict[str, str]:
    """The text of the newest result of each name that there is; files begin with their date."""
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        if path.stem[DATE:] in NAMES:
            found[path.stem[DATE:]] = path.read_text(encoding="utf-8")
    return found


def stale() -> list[str]:
    """Names whose shipped copy is another one or missing."""
    held = {path.stem: path.read_text(encoding="utf-8") for path in SHIPPED.glob("*.json")}
    wanted = newest()
    return sorted(name for name in {*held, *wanted} if held.get(name) != wanted.get(name))


if __name__ == "__main__":
    names = stale()
    if "--write" in sys.argv[1:]:
        SHIPPED.mkdir(exist_ok=True)
        for name in names:
            text = newest().get(name)
            path = SHIPPED / f"{name}.json"
            path.unlink(missing_ok=True) if text is None else path.write_text(text, encoding="utf-8")
    print("\n".join(names) or "all fresh")
