"""How far two results of `mapformers bench` agree: of every point, the ratio to torch's full attention.

mapformers bench --mechanisms all --lengths 1k,4k,16k --json first.json
mapformers bench --mechanisms all --lengths 1k,4k,16k --json second.json
python benchmarks/agreement.py first.json second.json
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from mapformers.measure.record import read_record

CLOSE = 0.15  # share by which two measurements of a ratio may differ


def differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float]:
    """Point to |a / b - 1| of times_faster, larger over smaller; points that both have."""
    found = {}
    for name, rows in first["points"].items():
        for length, row in rows.items():
            other = second["points"].get(name, {}).get(length, {})
            if "core" in row and "core" in other:
                low, high = sorted(one["core"]["times_faster"] for one in (row, other))
                found[f"{name} at {int(length):,}"] = high / low - 1
    return found


def main(paths: list[str]) -> None:
    """Print what share of the points agrees, and those that do not, the worst first."""
    first, second = (read_record(Path(path), "bench") for path in paths)
    found = differences(first, second)
    far = sorted(((value, name) for name, value in found.items() if value > CLOSE), reverse=True)
    print(f"{len(found) - len(far)} of {len(found)} ratios agree within {CLOSE:.0%}", end="; ")
    print(f"median difference {statistics.median(found.values()):.1%}, largest {max(found.values()):.1%}")
    for value, name in far:
        print(f"  {name}: {value:.0%}")


if __name__ == "__main__":
    main(sys.argv[1:])
