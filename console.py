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


def clock(seconds):
    """Seconds as "42 s" or "3 min 05 s"."""
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 60 else f"{seconds // 60} min {seconds % 60:02d} s"


class Screen:
    """Stages, lines and bars on the terminal; nothing at all when quiet."""

    def __init__(self, quiet, stages):
        self.console = Console(quiet=quiet, highlight=False)
        self.stages = stages
        self.number = 0
        self.seconds = {}

    def say(self, text, style=None):
        self.console.print(f"      {escape(text)}", style=style, soft_wrap=True)

    def table(self, header, rows):
        """A table of text cells."""
        table = Table(*header, box=box.SIMPLE)
        for row in rows:
            table.add_row(*map(escape, row))
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
        """The training bar, with `done` epochs behind it.

        Yields (tick, show), to call after each batch and with each epoch's row.
        Where there is no terminal to redraw, about ten lines are printed in all.
        """
        with self._progress(TextColumn("{task.fields[scores]}")) as progress:
            task = progress.add_task(
                f"epoch {min(done + 1, epochs)}/{epochs}",
                total=epochs * batches,
                completed=done * batches,
                scores="",
            )

            def show(row):
                epoch = row["epoch"]
                scores = (
                    f"loss {row['train_loss']:.3f}  test loss {row['test_loss']:.3f}  "
                    f"test accuracy {row['test_accuracy']:.2%}"
                )
                progress.update(task, description=f"epoch {min(epoch + 1, epochs)}/{epochs}", scores=scores)
                if not self.console.is_terminal and epoch % max(1, epochs // 10) in (0, epochs):
                    left = (epochs - epoch) * row["seconds"]
                    self.say(f"epoch {epoch}/{epochs}  {scores}  about {clock(left)} left")

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
