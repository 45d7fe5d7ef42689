"""Files that are written whole or not at all, and the lock of a folder."""

import contextlib
import csv
import hashlib
import io
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import filelock

from lab.errors import InputError


def to_disk(path):
    """Have a file or folder written out, so that a power cut after this finds it whole.

    OSError where the disk does not take a file. Windows opens no folder: there is nothing to do then.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if os.path.isdir(path):
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing_whole(path):
    """A binary file to write in the `with` block, which becomes `path` at its end, whole or not at all: a
    temporary name beside it, fsync, a rename."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            # Without it a rename may reach the disk before the content does: a power cut then leaves zeros.
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    to_disk(path.parent)


def write_whole(path, content):
    """Write bytes or text to `path`, whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    with writing_whole(path) as file:
        file.write(data)


def csv_row(row):
    """A row for a CSV in which no text is a formula to a spreadsheet: names are a stranger's."""
    return [f"'{cell}" if isinstance(cell, str) and cell[:1] in {*"=+-@"} else cell for cell in row]


def write_csv(path, header, rows):
    """Write a table as CSV, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(csv_row, [header, *rows]))
    write_whole(path, text.getvalue())


def sha256(path):
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def place(source, target):
    """Make `target` the same file as `source`: a hard link, else a symbolic link, else a copy.

    Where `source` is itself a symbolic link, the file that it leads to is meant: a hard link to the link
    would lead nowhere from another folder. InputError if it is gone, if `target` is there already, or if
    nothing can be written.
    """
    source = os.path.realpath(source)
    if not os.path.exists(source):
        raise InputError(f"{source} went away while the images were read: leave them there and run again")
    for how in (os.link, os.symlink, shutil.copyfile):
        if os.path.lexists(target):  # a copy would go through a link, into another of the user's files
            raise InputError(f"two images would be called {target.name}: rename one, {source}")
        try:
            how(source, target)
            return
        except OSError as error:
            reason = error
    raise InputError(f"cannot write {target}: {reason.strerror}")


def name_images(images, folder):
    """(class, path) pairs -> sorted (class, name, path): no name twice in a class, in whatever case."""
    seen, named = Counter((label, path.name.lower()) for label, path in images), []
    for label, path in sorted(images):
        name = path.name
        if seen[label, name.lower()] > 1:  # in pooled train/ and val/ folders: then it is the whole path
            name = "-".join(path.relative_to(folder).parts)
            while seen[label, name.lower()]:
                name = f"_{name}"
            seen[label, name.lower()] = 1
        named.append((label, name, path))
    return sorted(named)


def take_lock(path, busy):
    """The lock file `path`, for this process alone until the `with` block of it ends; its folder is made.

    InputError if another process has it, with the words `busy`, or if nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(path).acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(busy) from None
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror}; name another folder") from None
