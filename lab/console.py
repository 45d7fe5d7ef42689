"""What a person sees while the command runs: stages by name and live bars, or plain lines in a file."""

import contextlib
import time

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


def clock(seconds):
    """Seconds as "42 s" or "3 min 05 s"."""
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 60 else f"{seconds // 60} min {seconds % 60:02d} s"


class Screen:
    """Stages, lines and bars on the terminal; nothing at all when quiet."""

    def __init__(self, quiet, stages):
        self.console = Console(quiet=quiet, highlight=False)
        self.stages = stages  # how many there will be
        self.number = 0
        self.seconds = {}

    def say(self, text, style=None):
        self.console.print(f"      {escape(text)}", style=style, soft_wrap=True)

    def conclude(self, record, paths, seconds):
        """The last lines of a run: its files and its result."""
        results = record.results
        verdict = "passed" if results.passed else "not reached"
        about = " on demonstration images" if record.data.demonstration else ""
        self.console.print()
        for path in paths:
            print(path)
        self.console.print(
            f"\n[bold]Test accuracy {results.accuracy:.2%}[/]{about} ({results.correct} of {results.total}; "
            f"{results.baseline:.0%} baseline {verdict}; {escape(results.beside())}) in {clock(seconds)}",
            soft_wrap=True,
        )

    def table(self, header, rows):
        """A table of text cells."""
        table = Table(*header, box=box.SIMPLE)
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)

    @contextlib.contextmanager
    def stage(self, name):
        """Announce a stage and keep its duration in `seconds`."""
        self.number += 1
        self.console.print(
            f"[bold blue]{self.number}/{self.stages}[/]  [bold]{escape(name)}[/]", soft_wrap=True
        )
        start = time.perf_counter()
        yield
        self.seconds[name.lower()] = time.perf_counter() - start

    @contextlib.contextmanager
    def count(self, what, total=None):
        """A bar that counts single things; yields a function to call after each."""
        with self._progress(MofNCompleteColumn()) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)

    @contextlib.contextmanager
    def training(self, epochs, batches, done=0):
        """A bar that moves with each batch and shows the scores of each epoch, with `done` of so many epochs
        behind it; yields (a function to call after each batch, another to call with each EpochRow).

        Where there is no terminal to redraw, about ten lines are printed in all.
        """

        def show(row):
            scores = f"loss {row.train_loss:.3f}  test loss {row.test_loss:.3f}"
            scores += f"  test accuracy {row.test_accuracy:.2%}"
            progress.update(task, description=f"epoch {min(row.epoch + 1, epochs)}/{epochs}", scores=scores)
            tenth = row.epoch % -(-epochs // 10) == 0 or row.epoch == epochs
            if tenth and not self.console.is_terminal:
                left = clock((epochs - row.epoch) * row.seconds)
                self.say(f"epoch {row.epoch}/{epochs}  {scores}  about {left} left")

        first, of = f"epoch {min(done + 1, epochs)}/{epochs}", {"total": epochs * batches, "scores": ""}
        with self._progress(TextColumn("{task.fields[scores]}")) as progress:
            task = progress.add_task(first, completed=done * batches, **of)
            yield lambda: progress.advance(task), show

    def _progress(self, *columns):
        return Progress(
            TextColumn("     "),
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            *columns,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
