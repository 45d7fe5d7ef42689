"""All bundles that were handed in: `run.py --verify`, `python -m verify`.

Each is checked in a process of its own (check.py) with a time limit; what is said of it is put together here.
"""

import multiprocessing
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import intake
from lab.bundle import KINDS, file_name
from lab.errors import InputError
from lab.files import write_csv, write_whole
from lab.limits import LIMITS
from lab.machine import apart, give_back_memory, usable_cores
from verify.check import EDITED, FAILED, HOLDS, Verdict, Work, check, check_apart
from verify.handed_in import Files, find_bundles, printable

SECONDS = 600  # for one bundle
LIMITED = {"RLIMIT_DATA": 8 * 2**30, "RLIMIT_CORE": 0}  # bytes
ROOT = Path(__file__).parent.parent
PRELOAD = ["verify.check", "weasyprint", "matplotlib.pyplot", "sklearn.metrics", "scipy.stats"]
STYLES = {HOLDS: "green", EDITED: "yellow"}


def _processes():
    """The context that processes are started with; where the system can, they share what was imported."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    # Else the server finds no module of ours, and each process imports them for itself.
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, paths)]))
    return context


def check_in_process(bundle, work, context, seconds=SECONDS):
    """The Verdict on a bundle from a process of its own, which is ended after so many seconds."""
    verdict = Verdict(bundle.student_id, bundle.place)
    try:
        return apart(context, check_apart, bundle, work, seconds=seconds, limits=LIMITED)
    except TimeoutError:
        verdict.reasons.append(f"the check took longer than {seconds} s")
    except EOFError as error:  # it ended without a word
        verdict.reasons.append(f"its files ended the check (exit code {error})")
    return verdict


def check_all(bundles, work, jobs, screen):
    """The Verdicts on all bundles, in order, so many at a time."""
    context = _processes()
    pool = ThreadPoolExecutor(jobs)
    try:
        with screen.count("checking bundles", len(bundles)) as tick:

            def one(bundle):
                try:
                    return check_in_process(bundle, work, context)
                finally:
                    tick()

            return list(pool.map(one, bundles))
    finally:
        for process in multiprocessing.active_children():  # after Ctrl-C
            process.kill()
        pool.shutdown(cancel_futures=True)


def compare_bundles(verdicts):
    """Name on both what two bundles have in common that they should not."""
    for v in verdicts:
        others = [o for o in verdicts if o is not v]
        if again := [printable(o.place) for o in others if o.student_id == v.student_id]:
            v.reasons.append(f"there is another bundle of this id: {', '.join(again)}")
            v.word = FAILED
        others = [o for o in others if o.student_id != v.student_id]
        for what, words in (("weights", "weights"), ("code", "edited code")):
            own = getattr(v, what)
            if own and (same := sorted({o.student_id for o in others if getattr(o, what) == own})):
                v.remarks.append(f"the same {words} as {', '.join(same)}")


def _show(verdict, screen):
    said = f"{verdict.correct} of {verdict.total} right; figures and pages are those of the PDF"
    said = f"{verdict.word}: {printable('; '.join(verdict.reasons) or said, 2000)}"
    if verdict.remarks:
        said += f" [{printable('; '.join(verdict.remarks), 1000)}]"
    screen.say(f"{verdict.student_id}  {said} ({printable(verdict.place)})", STYLES.get(verdict.word, "red"))


HEADER = ["id", "name", "verdict", "accuracy", "loss", "parameters", "settings changed from the template"]
HEADER += [*(f"point {n}" for n in range(1, 11)), "own answers", "remarks", "reason"]


def gradebook(verdicts):
    """The rows of --report-csv, under HEADER."""
    for v in verdicts:
        figures = [f"{v.correct / v.total:.4f}", f"{v.loss:.4f}", v.parameters] if v.total else [""] * 3
        points = ["" if not v.rubric else "yes" if there else "no" for there in v.rubric or [None] * 10]
        own = ", ".join(v.own) or ("as shipped" if v.total else "")
        row = [v.student_id, v.name, v.word, *figures, v.settings, *points, own]
        yield [printable(cell, 2000) for cell in (*row, "; ".join(v.remarks), "; ".join(v.reasons))]


def verify_all(path, source, screen, *, limits=LIMITS, labels=None, jobs=1, diff=None, table=None):
    """Check all bundles at `path` on the images at `source`, a zip or folder, with classes from the table
    `labels` if given. None: each on its own run's, or dataset.zip or dataset/ here if one has no run.

    Said on the screen; the differences of edited code go to the folder `diff`, the gradebook to `table`.
    -> exit code: 0 if all hold and nothing else is there, else 1. InputError of find_bundles and open_source.
    """
    # Where the results go is looked at now, and not after all the checks.
    if table and (table.is_dir() or not table.parent.is_dir()):
        wrong = "it is a folder" if table.is_dir() else f"there is no folder {table.parent}"
        raise InputError(f"--report-csv {table}: {wrong}")
    if diff:
        if diff.exists() and not diff.is_dir():
            raise InputError(f"--diff {diff}: it is not a folder")
        diff.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        bundles, lines = find_bundles(path, scratch)
        if source is None and any(bundle.run is None for bundle in bundles):
            source = intake.default_source()
        images = intake.open_source(source, scratch, limits) if source and bundles else None
        threads = max(1, usable_cores() // jobs) if "OMP_NUM_THREADS" not in os.environ else None
        verdicts = check_all(bundles, Work(images, scratch, threads, labels), jobs, screen) if bundles else []
    compare_bundles(verdicts)
    for verdict in verdicts:
        _show(verdict, screen)
    for line in lines:
        screen.say(f"{'--  ' if line.fails else ''}{printable(line.text, 2000)} ({printable(line.place)})",
                   "red" if line.fails else "dim")  # fmt: skip
    if len(verdicts) > 1:
        rows = [(v.student_id, f"{v.correct / v.total:.2%}" if v.total else "", v.word) for v in verdicts]
        screen.table(("student", "test accuracy", "verdict"), rows)
    if diff:
        for number, v in enumerate(verdicts, 1):
            if v.diff:
                write_whole(diff / f"{v.student_id}-{number}.diff", "\n".join(v.diff) + "\n")
    if table:
        write_csv(table, HEADER, gradebook(verdicts))
    return int(any(v.word != HOLDS for v in verdicts) or any(line.fails for line in lines) or not verdicts)


def verify_own(folder, record, screen):
    """Check the bundle of a Record that a run has just put in `folder`, say so -> whether it holds."""
    give_back_memory()
    student_id = record.student.id
    paths = {kind: folder / file_name(student_id, kind) for kind in KINDS}
    with tempfile.TemporaryDirectory() as scratch:
        work = Work(None, Path(scratch), drawn=record.files[paths["pdf"].name])
        verdict = check(Files(student_id, str(folder), paths, folder / "run"), work)
    _show(verdict, screen)
    return verdict.word == HOLDS
