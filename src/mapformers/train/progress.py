"""How far a run is: a bar on a terminal, plain lines elsewhere.

Never wider than 80 columns on a terminal of 80.
"""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LINE_EVERY = 5.0  # seconds between plain lines


class RunProgress:
    """Shows step, loss and other figures, the speed and the time left."""

    def __init__(
        self, total: int, start: int = 0, file: TextIO | None = None, width: int | None = None
    ) -> None:
        self.total, self.first = total, start
        self.began = self.last_line = time.monotonic()
        self.text = ""
        self.console = Console(file=file or sys.stderr, width=width, highlight=False)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.completed:>{task.fields[digits]}}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[text]}"),
            )
            self.bar = Progress(*columns, console=self.console, expand=True)
            self.task = self.bar.add_task("", total=total, completed=start, text="", digits=len(str(total)))
            self.bar.start()

    def step(self, done: int) -> None:
        """One more step is done."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done)

    def report(self, done: int, figures: str, speed: float, counted: str = "tokens") -> None:
        """New figures as a part of a line, and how much of what is counted goes by in a second."""
        elapsed = time.monotonic() - self.began
        left = clock(elapsed / max(1, done - self.first) * (self.total - done))
        self.text = f"{figures}  {_short(speed)} {counted}/s  {left} left"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, text=self.text)
        elif done >= self.total or time.monotonic() - self.last_line >= LINE_EVERY or done == self.first + 1:
            self.last_line = time.monotonic()
            self.note(f"step {done:>{len(str(self.total))}}/{self.total}  {self.text}")

    def note(self, text: str) -> None:
        """A line of its own above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def clock(seconds: float) -> str:
    """12 s -> 0:12, 3,700 s -> 1:01:40."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 10_000 else f"{number:,.0f}"
