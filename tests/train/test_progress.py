"""The bar and the plain lines."""

import io
import re

from mapformers.train.progress import RunProgress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    progress = RunProgress(100, 0, file)
    progress.report(1, "loss 2.000  2.885 bits/byte", 1234.5)
    progress.report(2, "loss 2.000  2.885 bits/byte", 1234.5)  # too soon after the line before
    progress.note("checked")
    progress.report(100, "loss 1.000  1.443 bits/byte", 98765.0)
    progress.close()
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert re.fullmatch(
        r"step   1/100  loss 2\.000  2\.885 bits/byte  1,23[45] tokens/s  \d+:\d\d(:\d\d)? left", lines[0]
    )
    assert lines[1] == "checked"
    assert "98.8k tokens/s  0:00 left" in lines[2]


def test_a_bar_fits_80_columns() -> None:
    file = Terminal()
    progress = RunProgress(400_000, 0, file, width=80)
    progress.report(123_456, "loss 12.345  12.345 bits/byte", 123_456.0)
    progress.step(123_457)
    progress.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    lines = [line for part in shown.split("\n") for line in part.split("\r")]
    assert max(map(len, lines)) <= 80
    assert any("12.345 bits/byte" in line and "left" in line for line in lines)


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 12, 61, 3700)] == ["0:00", "0:12", "1:01", "1:01:40"]
