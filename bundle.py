"""The output folder: the three files of a bundle appear in it together, or not at all."""

import contextlib
import ctypes
import io
import os
import re
import shutil
import sys
import zipfile

from recipe import InputError

KINDS = ("pdf", "py", "pth")  # report, code, weights
STUDENT_ID = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"


def check_student_id(text):
    """The id as given. InputError unless it is fit for a file name on every system."""
    if not re.fullmatch(STUDENT_ID, text):
        raise InputError(
            f"--student-id {text!r}: use letters, digits, '-' and '_' only (at most 64), "
            "as it becomes part of the file names"
        )
    return text


def bundle_names(student_id):
    """The file names that the assignment asks for: report, code, weights."""
    return [f"{student_id}_Lab8_Homework.{kind}" for kind in KINDS]


def notebook_name(student_id):
    """The file name of the code as a notebook, which the assignment takes too."""
    return f"{student_id}_Lab8_Homework.ipynb"


def zip_name(student_id):
    """The file name of the upload archive."""
    return f"{student_id}_Lab8_Homework.zip"


def zip_bundle(folder, student_id, wanted):
    """The three files as one zip to upload, if wanted or if there is an older one. -> [its path] or []

    The same files give the same bytes.
    """
    from record import write_whole  # imports NumPy: --help need not wait for it

    path = folder / zip_name(student_id)
    if not wanted and not path.exists():
        return []
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in bundle_names(student_id):
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
    write_whole(path, content.getvalue())
    return [path]


def check_output(folder, student_id, force):
    """InputError if `folder` holds a finished bundle, unless it may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: move it away or name another --output-dir")
    names = [*bundle_names(student_id), notebook_name(student_id)]
    finished = [name for name in names if (folder / name).exists()]
    if finished and not force:
        raise InputError(
            f"{folder} already holds {', '.join(finished)}: add --force to replace the bundle, "
            "--report-only to draw its PDF again, or name another --output-dir"
        )


CHECKPOINT = "checkpoint.pt"  # in the run folder, while a run is not finished


def take_lock(folder, busy):
    """The lock of a folder in the output folder, for this process alone; the folder is made.

    InputError if another process has it, with the words `busy`, or if nothing can be written.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / "lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(busy) from None
    except OSError as error:
        raise InputError(
            f"can't write to --output-dir {folder.parent}: {error.strerror}; name another"
        ) from None
    return lock


class Staging:
    """A folder under construction. What is in it after a failure is kept for --resume once an epoch is
    finished, and published as it is if `keep` was set: weights trained for minutes are worth more
    than a clean exit."""

    def __init__(self, folder):
        self.folder = folder
        self.run = folder / "run"
        self.run.mkdir(exist_ok=True)
        self.checkpoint = self.run / CHECKPOINT
        self.keep = False


@contextlib.contextmanager
def staged(folder, student_id, resume=False):
    """A Staging beside `folder` that takes its place when the block ends well.

    Files in `folder` that are not the bundle's stay. After a failure the old folder is as it was, and
    after a power cut or a kill it is the old or the new one. With `resume` the Staging is that of the
    interrupted run. InputError if there is none, if another run is at work, or if nothing can be
    written.
    """
    partial = folder.parent / f".{student_id}-partial"
    busy = f"another run is writing {folder}: wait for it, or name another --output-dir"
    lock = take_lock(partial, busy)
    _recover(partial, folder, student_id)
    if resume and not (partial / "run" / CHECKPOINT).is_file():
        _give_up(partial, lock)
        raise InputError(f"there is no interrupted run of {student_id} to resume: run without --resume")
    if not resume:
        _empty(partial)
    staging = Staging(partial)
    try:
        yield staging
        _publish(partial, folder, student_id, lock)
    except BaseException as error:
        useful = staging.checkpoint.is_file() and (resume or not isinstance(error, InputError))
        if staging.keep and not folder.exists():
            _publish(partial, folder, student_id, lock)
            print(f"run.py: the trained run is kept: add --report-only for {folder}", file=sys.stderr)
        elif useful:
            lock.release()
            print(f"run.py: --student-id {student_id} --resume goes on from the last epoch", file=sys.stderr)
        else:
            _give_up(partial, lock)
        raise


def _empty(partial):
    for path in partial.iterdir():
        if path.name == "lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _give_up(partial, lock):
    lock.release()
    shutil.rmtree(partial, ignore_errors=True)


def _publish(new, folder, student_id, lock):
    """Put the finished folder `new` in the place of `folder`, at once where the system can."""
    for path in (*(new / name for name in bundle_names(student_id)), new / "run" / "record.json", new):
        _to_disk(path)
    lock.release()  # some systems rename no folder that holds an open file
    (new / "lock").unlink(missing_ok=True)
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        folder.rename(_aside(folder))
        new.rename(folder)
    _to_disk(folder.parent)
    _remove_old(_aside(folder), folder, student_id)
    _remove_old(new, folder, student_id)
    # Last: a `new` that holds it is still to be published, one without is what was replaced.
    (folder / "run" / CHECKPOINT).unlink(missing_ok=True)


def _aside(folder):
    return folder.with_name(f".{folder.name}-old")


def _recover(partial, folder, student_id):
    """Complete a publishing that was cut off."""
    old = _aside(folder)
    if old.exists() and not folder.exists():  # cut off between the two renames
        old.rename(folder)
    _remove_old(old, folder, student_id)
    if folder.exists() and not (partial / "run" / CHECKPOINT).is_file():
        _carry_over(partial, folder, student_id)


def _carry_over(old, folder, student_id):
    """Move the files in `old` that are not the bundle's to `folder`."""
    ours = {"lock", "run", "latex", *bundle_names(student_id)}
    ours |= {notebook_name(student_id), zip_name(student_id)}
    for path in old.iterdir():
        if path.name not in ours and not (folder / path.name).exists():
            path.rename(folder / path.name)


def _remove_old(old, folder, student_id):
    if old.exists():
        _carry_over(old, folder, student_id)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a, b):
    """Swap two paths in one step (renameat2, Linux). False where the system or file system can't."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def _to_disk(path):
    """Have a file or folder written out, so that a power cut after this finds it whole."""
    with contextlib.suppress(OSError):  # not there, or a folder on a system that opens none
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
