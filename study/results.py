"""What a study keeps: a typed row for each training, in one JSON file that is written as the rows come.

The same command, given again, goes on from that file. Nothing here imports PyTorch, so that recorded
results are read without its two seconds.
"""

import dataclasses
import datetime
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import msgspec

from lab.console import clock
from lab.errors import InputError
from lab.files import write_whole
from lab.findings import StudyData, StudyMachine
from lab.machine import end_with_parent
from lab.record import Machine, as_json

Value = bool | int | float | str  # of a hyperparameter


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and its score on the images held out; or, in `failed`, why there is no score."""

    errors: int | None = None
    images: int | None = None
    loss: float | None = None
    train_loss: float | None = None
    seconds: float | None = None
    precision: str | None = None
    failed: str | None = None
    date: str = ""

    @property
    def accuracy(self):
        return (self.images - self.errors) / self.images

    @property
    def told(self):
        return self.failed or f"{self.errors}/{self.images} wrong, loss {self.loss:.3f}"


@dataclass(frozen=True, kw_only=True)
class Results:
    """The file of a study. Each study has a subclass, with its own rows and with what they have in common."""

    command: ClassVar[str]
    what: str
    machine: Machine
    jobs: int = 1
    data: StudyData | None = None
    rows: dict[str, Run] = field(default_factory=dict)

    @property
    def origin(self):
        """What a summary says of where its figures are from."""
        return {
            "data": self.data,
            "machine": StudyMachine(self.machine.processor, self.machine.cores, self.machine.gpu),
            "date": max(row.date for row in self.rows.values()),
        }


def without_seed(recipe):
    """{name: value} of what all runs of a study have alike; their seeds are their own."""
    return {name: value for name, value in recipe.as_dict().items() if name != "seed"}


def now():
    return datetime.datetime.now().isoformat(timespec="seconds")


def read_results(path, kind):
    """The results in a JSON file as the type `kind`. InputError if it holds something else."""
    try:
        results = msgspec.convert(json.loads(Path(path).read_text("utf-8")), kind)
        # The text `what` tells apart kinds whose fields are alike.
        if results.what == getattr(kind, "what", results.what):
            return results
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):  # of JSON, UTF-8 and msgspec
        pass
    raise InputError(f"{path} does not hold results of {kind.command}: name another file")


def check_folder(path):
    """InputError where results could not be written."""
    if not path.resolve().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")


def open_results(path, about):
    """The Results to go on with: those in the file at `path`, or `about`, which has no rows yet.

    InputError where the file holds something else, or results of another recipe, data or folds.
    """
    check_folder(path)
    if not path.exists():
        return about
    there = read_results(path, type(about))
    # Another machine may go on, with more runs at once, and the data may lie elsewhere.
    data = there.data and about.data and dataclasses.replace(there.data, name=about.data.name)
    same = dataclasses.replace(there, machine=about.machine, jobs=about.jobs, data=data, rows={})
    if same != about:
        raise InputError(f"{path} holds runs of another recipe, data or folds: name another file")
    return dataclasses.replace(there, jobs=about.jobs)


def progress(before, done, total, start):
    """ "3/9, about 5 min left": `before` were there, `done` came since the time.monotonic() `start`."""
    left = max(0, total - before - done)
    if not done or not left:
        return f"{before + done}/{total}"
    return f"{before + done}/{total}, about {clock((time.monotonic() - start) / done * left)} left"


def run_all(work, path, results):
    """Run {key: call without arguments, that returns a Run}, in `results.jobs` processes.

    The rows are put into `results`, and that into the file at `path`, as they come; what is there already
    is not run again. Yields (key, row, "3/9, about 5 min left"). InputError where the system ends a process.
    """
    rows, start = results.rows, time.monotonic()
    there = [key for key in work if key in rows]
    for key in there:
        yield key, rows[key], f"{len(there)}/{len(work)}"
    # Fresh processes: a copy of this one would inherit PyTorch's threads as they stand, and hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(results.jobs, context, end_with_parent) as pool:
        futures = {pool.submit(call): key for key, call in work.items() if key not in rows}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                key = futures[future]
                rows[key] = dataclasses.replace(future.result(), date=now())
                write_whole(path, as_json(results))
                yield key, rows[key], progress(len(there), done, len(work), start)
        except BrokenProcessPool:
            raise InputError(
                f"{key}, or a run beside it, was ended by the system, most likely for lack of memory: "
                f"run fewer at once; the same command goes on from {path}"
            ) from None
        finally:
            # Where the caller stops early, what has not begun is not waited for.
            pool.shutdown(wait=False, cancel_futures=True)


def run_study(work, path, about, say):
    """Run what the file at `path` lacks of `work`, saying how each run ended -> the whole Results."""
    results = open_results(path, about)
    for key, row, so_far in run_all(work, path, results):
        say(f"{so_far}  {key}: {row.told}")
    return results
