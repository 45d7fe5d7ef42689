"""The output folder: the three files of a bundle appear in it together, or not at all."""

import contextlib
import ctypes
import io
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

from lab.errors import InputError
from lab.files import take_lock, to_disk, write_whole

KINDS = ("pdf", "py", "pth")  # report, code, weights
FOLDERS = ("run", "latex", "predictions")  # of a bundle, beside them
STUDENT_ID = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"


def check_student_id(text):
    """The id as given. InputError unless it is fit for a file name on every system."""
    if not re.fullmatch(STUDENT_ID, text):
        raise InputError(
            f"--student-id {text!r}: use letters, digits, '-' and '_' only (at most 64), "
            "as it becomes part of the file names"
        )
    return text


def file_name(student_id, kind):
    """The name of one of a bundle's files, by its suffix."""
    return f"{student_id}_Lab8_Homework.{kind}"


def bundle_names(student_id):
    """The file names that the assignment asks for: report, code, weights."""
    return [file_name(student_id, kind) for kind in KINDS]


def zip_bundle(folder, student_id, wanted):
    """The three files as one zip to upload, if wanted or if there is an older one. -> [its path] or []

    The same files give the same bytes.
    """
    path = folder / file_name(student_id, "zip")
    if not wanted and not path.exists():
        return []
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in bundle_names(student_id):
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
    write_whole(path, content.getvalue())
    return [path]


def check_output(options):
    """InputError if the folder of such options holds a finished bundle, unless it may be replaced."""
    folder, student_id = options.folder, options.student_id
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: move it away or name another --output-dir")
    names = [*bundle_names(student_id), file_name(student_id, "ipynb")]
    finished = [name for name in names if (folder / name).exists()]
    interrupted = _can_go_on(_beside(folder, "partial"))
    if interrupted and not options.resume and not options.force:
        raise InputError(f"{student_id} has an interrupted run: add --resume to go on with it, or --force")
    foreign = [folder / name for name in FOLDERS if (folder / name).exists()]
    ours = (folder / "run" / "record.json").is_file() or {*bundle_names(student_id)} <= {*finished}
    if foreign and not ours:
        raise InputError(
            f"{foreign[0]} is not of this program, which would replace it: move it away, or name another "
            "--output-dir"
        )
    if not finished or options.force:
        return
    if options.resume and not interrupted:
        raise InputError(f"{folder} is finished: no interrupted run of {student_id} is left to resume")
    raise InputError(
        f"{folder} already holds {', '.join(finished)}: add --force to replace the bundle, "
        "--report-only to draw its PDF again, or name another --output-dir"
    )


CHECKPOINT = "checkpoint.pt"  # in the run folder, while a run is not finished


def lock_folder(folder):
    """The lock of an output folder, for this process alone. InputError if another process has it, or if the
    folder is a link.

    The file lies beside the folder and stays: one inside would move with it, and a second process could
    take the lock of a folder that is just being put in place.
    """
    if folder.is_symlink():  # what takes its place would take the link's
        raise InputError(f"{folder} is a link: remove it, or name another --output-dir")
    busy = f"another run is writing {folder}: wait for it, or name another --output-dir"
    return take_lock(folder.parent / f".{folder.name}.lock", busy)


class Staging:
    """A folder under construction. What is in it after a failure is kept for --resume once an epoch is
    finished; after `trained` was set, also where the user's input is at fault: weights trained for minutes
    are worth more than a clean exit."""

    def __init__(self, folder):
        self.folder = folder
        self.run = folder / "run"
        self.run.mkdir(exist_ok=True)
        self.checkpoint = self.run / CHECKPOINT
        self.trained = False


@contextlib.contextmanager
def staged(folder, resume=False, again="--resume"):
    """A Staging beside `folder`, called by the student's id, that takes its place when the block ends well.

    Files in `folder` that are not the bundle's stay. After a failure the old folder is as it was, and
    after a power cut or a kill it is the old or the new one. With `resume` the Staging is that of the
    interrupted run. `again`: the flags that resume it. InputError if there is none, if another run is at
    work, or if nothing can be written.
    """
    partial = _beside(folder, "partial")
    with lock_folder(folder):
        _recover(folder)
        if resume and not _can_go_on(partial):
            shutil.rmtree(partial, ignore_errors=True)
            raise InputError(f"there is no interrupted run of {folder.name} to resume: run without --resume")
        partial.mkdir(exist_ok=True)
        if not resume:
            _empty(partial)
        staging = Staging(partial)
        try:
            yield staging
            _publish(partial, folder)
        except BaseException as error:
            input_error = isinstance(error, InputError) and not staging.trained
            if staging.checkpoint.is_file() and (resume or not input_error):
                # A finished bundle of this id is still there, and is replaced only where that is said again.
                again += " --force" * folder.exists()
                done = "after its training" if staging.trained else "from the last epoch"
                print(f"run.py: {again} goes on {done}", file=sys.stderr)
            else:
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def redrawn(folder):
    """A copy of the bundle in `folder`, to change; it takes the bundle's place when the block ends well.

    After a failure it is dropped. InputError if there is no bundle, or if another run is at work.
    """
    copy, record = _beside(folder, "redrawn"), folder / "run" / "record.json"
    missing = f"there is no {record}: run once without --report-only"
    if not folder.exists() and not _beside(folder, "old").exists():  # a lock would make the folders above it
        raise InputError(missing)
    with lock_folder(folder):
        _recover(folder)
        shutil.rmtree(copy, ignore_errors=True)  # of one that was killed
        if not record.exists():
            raise InputError(missing)
        try:
            shutil.copytree(folder, copy, symlinks=True, copy_function=_link_images)
            yield copy
            _publish(copy, folder)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _link_images(source, target, **how):
    """Copy a file; the images of the split, which no report changes, are linked where that can be done."""
    if "dataset_split" in Path(source).parts:
        with contextlib.suppress(OSError):
            return os.link(source, target, follow_symlinks=False)
    return shutil.copy2(source, target, **how)


def _empty(partial):
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _publish(new, folder):
    """Put the finished folder `new` in the place of `folder`, at once where the system can."""
    # All of it must be on the disk before the rename, which may get there first.
    for path in (*(new / name for name in bundle_names(folder.name)), new / "run" / "record.json", new):
        if path.exists():
            to_disk(path)
    old = _beside(folder, "old")
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        folder.rename(old)
        new.rename(folder)
    to_disk(folder.parent)
    _remove_old(old, folder)
    _remove_old(new, folder)
    # Last: a `new` that holds it is still to be published, one without is what was replaced.
    (folder / "run" / CHECKPOINT).unlink(missing_ok=True)


def _beside(folder, state):
    """Where a folder stands that is to become `folder` (partial, redrawn), or was it (old)."""
    return folder.with_name(f".{folder.name}-{state}")


def _can_go_on(partial):
    """Whether a partial folder holds an interrupted run with an epoch or more to resume it from."""
    return (partial / "run" / CHECKPOINT).is_file()


def _recover(folder):
    """Complete a publishing that was cut off."""
    old, partial = _beside(folder, "old"), _beside(folder, "partial")
    if old.exists() and not folder.exists():  # cut off between the two renames
        old.rename(folder)
    _remove_old(old, folder)
    if folder.exists() and partial.exists() and not _can_go_on(partial):
        _carry_over(partial, folder)


def _carry_over(old, folder):
    """Move the files in `old` that are not the bundle's to `folder`."""
    ours = {*FOLDERS, *(file_name(folder.name, kind) for kind in (*KINDS, "ipynb", "onnx", "zip"))}
    for path in old.iterdir():
        if path.name not in ours and not (folder / path.name).exists():
            path.rename(folder / path.name)


def _remove_old(old, folder):
    if old.exists():
        _carry_over(old, folder)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a, b):
    """Swap two paths in one step (renameat2, Linux). False where the system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0
