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

from lab.errors import InputError
from lab.files import write_whole
from lab.findings import StudyData, StudyMachine
from lab.record import Machine, SplitFacts, as_json

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
    def told(self):
        return self.failed or f"{self.errors}/{self.images} wrong, loss {self.loss:.3f}"


@dataclass(frozen=True)
class Images:
    """The images that results are about: fields of lab.record.DataFacts."""

    name: str
    classes: list[str]
    counts: dict[str, dict[str, int]]
    split: SplitFacts
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """The file of a study. Each study has a subclass, with its own rows and with what they have in common."""

    command: ClassVar[str]
    what: str
    machine: Machine
    jobs: int = 1
    data: Images | None = None
    rows: dict[str, Run] = field(default_factory=dict)

    @property
    def origin(self):
        """What a summary says of where its figures are from."""
        return {
            "data": StudyData(self.data.fingerprint, self.data.name, self.data.classes),
            "machine": StudyMachine(self.machine.processor, self.machine.cores, self.machine.gpu),
            "date": max(row.date for row in self.rows.values()),
        }


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

    def told(results):
        # Another machine may go on, and the data may lie elsewhere.
        data = results.data and dataclasses.replace(results.data, name="")
        return dataclasses.replace(results, machine=about.machine, jobs=1, data=data, rows={})

    if told(there) != told(about):
        raise InputError(f"{path} holds runs of another recipe, data or folds: name another file")
    return there


def run_all(work, path, results):
    """Run {key: call without arguments, that returns a Run}, in `results.jobs` processes.

    The rows are put into `results`, and that into the file at `path`, as they come; what is there already
    is not run again. Yields (key, row, "3/9, about 5 min left"). InputError where the system ends a process.
    """
    from lab.console import clock

    rows, todo = results.rows, {key: call for key, call in work.items() if key not in results.rows}
    start, done = time.monotonic(), 0

    def so_far():
        line = f"{len(work) - len(todo) + done}/{len(work)}"
        if not 0 < done < len(todo):
            return line
        left = (time.monotonic() - start) / done * (len(todo) - done)
        return f"{line}, about {clock(left)} left"

    for key in work.keys() - todo.keys():
        yield key, rows[key], so_far()
    # Fresh processes: a copy of this one would inherit PyTorch's threads as they stand, and hang.
    with ProcessPoolExecutor(results.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(call): key for key, call in todo.items()}
        try:
            for future in as_completed(futures):
                key = futures[future]
                rows[key] = dataclasses.replace(future.result(), date=now())
                write_whole(path, as_json(results))
                done += 1
                yield key, rows[key], so_far()
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
