"""The output folder: the three files of a bundle appear in it together, or not at all."""

import contextlib
import io
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from recipe import InputError


def check_student_id(text):
    """The id as given. InputError unless it is fit for a file name on every system."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text):
        raise InputError(
            f"--student-id {text!r}: use letters, digits, '-' and '_' only (at most 64), "
            "as it becomes part of the file names"
        )
    return text


def bundle_names(student_id):
    """The file names that the assignment asks for: report, code, weights."""
    return [f"{student_id}_Lab8_Homework.{kind}" for kind in ("pdf", "py", "pth")]


def zip_bundle(folder, student_id, wanted):
    """The three files as one zip to upload, if wanted or if there is an older one. -> [its path] or []

    The same files give the same bytes.
    """
    from record import write_whole  # imports NumPy: --help need not wait for it

    path = folder / f"{student_id}_Lab8_Homework.zip"
    if not wanted and not path.exists():
        return []
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in bundle_names(student_id):
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
    write_whole(path, content.getvalue())
    return [path]


def check_output(folder, student_id, force):
    """InputError if `folder` holds a finished bundle, unless it may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: move it away or name another --output-dir")
    finished = [name for name in bundle_names(student_id) if (folder / name).exists()]
    if finished and not force:
        raise InputError(
            f"{folder} already holds {', '.join(finished)}: add --force to replace the bundle, "
            "--report-only to draw its PDF again, or name another --output-dir"
        )


class Staging:
    """A folder under construction. Removed if the run fails, unless `keep` was set: weights trained for
    minutes are worth more than a clean exit."""

    def __init__(self, folder):
        self.folder = folder
        self.run = folder / "run"
        self.run.mkdir()
        self.keep = False


@contextlib.contextmanager
def staged(folder, student_id):
    """A Staging beside `folder` that takes its place when the block ends well.

    Files in `folder` that are not the bundle's stay. After a failure the old folder is as it was.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Staging(Path(tempfile.mkdtemp(prefix=f".{student_id}-", dir=folder.parent)))
    except OSError as error:
        raise InputError(
            f"can't write to --output-dir {folder.parent}: {error.strerror}; name another"
        ) from None
    try:
        yield staging
        _publish(staging.folder, folder, student_id)
    except BaseException:
        if not staging.keep:
            shutil.rmtree(staging.folder, ignore_errors=True)
        elif folder.exists():
            print(f"run.py: the trained run is kept in {staging.folder}", file=sys.stderr)
        else:
            _publish(staging.folder, folder, student_id)
            print(f"run.py: the trained run is kept: add --report-only for {folder}", file=sys.stderr)
        raise


def _publish(new, folder, student_id):
    new.chmod(0o755)  # a temporary folder is for one user only
    if not folder.exists():
        new.rename(folder)
        return
    ours = {"run", "latex", f"{student_id}_Lab8_Homework.zip", *bundle_names(student_id)}
    for path in folder.iterdir():
        if path.name not in ours:
            path.rename(new / path.name)
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    folder.rename(old / "bundle")
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
