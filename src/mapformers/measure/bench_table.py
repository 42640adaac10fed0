"""The benchmark as text of 80 columns."""

from typing import Any

NAME = 25


def bench_table(body: dict[str, Any], machine: dict[str, Any]) -> str:
    """Points by length, then what follows from all lengths, then the machine."""
    points, summary, settings = body["points"], body["summary"], body["settings"]
    lengths = sorted({int(n) for rows in points.values() for n in rows})
    lines: list[str] = []
    for n in lengths:
        rows = {name: rows[str(n)] for name, rows in points.items() if str(n) in rows}
        lines += [*_of_length(n, rows), ""]
    widths = (12, 10, 12, 12)
    lines.append(_row("", ("grows as n^", "memory n^", "faster from", "FLOPs/model"), widths))
    for name, one in summary.items():
        ratio = next((row.get("flops_ratio") for row in points[name].values()), None)
        growths = _number(one["growth_time"], 2), _number(one["growth_memory"], 2)
        lines.append(_row(name, (*growths, _crossover(one, lengths), _number(ratio, 2)), widths))
    lines += ["", *_legend(settings, machine)]
    return "\n".join(lines)


def _of_length(n: int, rows: dict[str, dict[str, Any]]) -> list[str]:
    widths = (8, 8, 8, 8, 7, 8)
    heads = ("forward", "f+b", "SDPA/f+b", "layer", "token", "memory")
    lines = [_row(f"{n:,} tokens", heads, widths)]
    for name, row in rows.items():
        said = row.get("red") or row.get("left_out")
        if said:
            mark = "RED: " if "red" in row else "left out: "
            lines.append(f"{_cut(name):<{NAME}} {_cut(mark + said, 80 - NAME - 1)}")
            continue
        decode = row.get("decode")
        cells = (
            _milliseconds(row.get("core_forward")),
            _milliseconds(row.get("core")),
            f"{row['core']['times_faster']:.1f}x",
            _milliseconds(row.get("layer")),
            _milliseconds(decode),
            _memory(row.get("peak_mb")),
        )
        lines.append(_row(name, cells, widths))
    return lines


def _row(name: str, cells: tuple[str, ...], widths: tuple[int, ...]) -> str:
    right = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{_cut(name):<{NAME}} {right}"


def _legend(settings: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    return [
        "ms, the fastest run; f+b: forward and backward; SDPA/f+b: how many times faster",
        "than torch's full attention, causal or not as the mechanism is; layer: with its",
        "projections, f+b; token: decoding one; memory: what f+b adds; FLOPs/model: those",
        "of torch's products beside the cost model. Red: not equal to its definition",
        f"batch {settings['batch']}, {settings['heads']} heads of {settings['head_dim']}, "
        f"{settings['dtype']}, {settings['kernel']} kernels",
        f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}",
    ]


def _crossover(one: dict[str, Any], lengths: list[int]) -> str:
    found = one["crossover"]
    if found is None:
        return "none"
    return f"{found:,.0f}" if found else f"{lengths[0]:,} or less"


def _milliseconds(row: dict[str, float] | None) -> str:
    if row is None:
        return "-"
    value = 1000 * row["min"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _memory(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} MB"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cut(text: str, most: int = NAME) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
