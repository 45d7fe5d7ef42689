"""The one error that a user's input leads to, and what is said of the system's errors."""

import contextlib
import errno
import importlib.util
import shutil
import sys
import tempfile
import unicodedata


def printable(text, mark="\N{REPLACEMENT CHARACTER}"):
    """A text on one line, with `mark` for what a terminal would obey: names are a stranger's, and one may
    clear the screen or forge a line."""
    return "".join(c if c.isprintable() else mark for c in str(text))


def first_of(texts, most=4):
    """The first of many texts, and how many more there are: "a, b, c, d and 2 more"."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def said(error):
    """A library's error on one line, not too long."""
    return " ".join(str(error).split())[:200]


class InputError(ValueError):
    """What the user gave cannot be used. The text is one line: what is wrong, where, what to do."""

    def __init__(self, text):
        super().__init__(printable(text))


def check_name(name):
    """InputError if a name has what no page and no terminal can show: control characters, broken UTF-8,
    or marks that turn the direction of what follows."""
    turning = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    if any(unicodedata.category(c) in ("Cc", "Cs") or c in turning for c in name):
        raise InputError(f"the name {name!a} has control characters or is not UTF-8: rename it")


class LostProcess(RuntimeError):
    """One of several processes that trained together is gone."""


def check_packages(flag, packages, note=""):
    """InputError where a package that only a flag needs is missing: found before the work, not after it."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise InputError(f"{flag} needs {', '.join(missing)}: pip install {' '.join(packages)}{note}")


@contextlib.contextmanager
def told(hint=""):
    """Turn a plain ValueError of the graded core into an InputError, with a hint that may name flags."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{error}: {hint}" if hint else str(error)) from None


def is_out_of_memory(error):
    """Whether an error says that memory is too small: a GPU's, Apple's, or the main memory."""
    import torch

    said = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")  # by plain RuntimeErrors
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(s in str(error) for s in said)


HINTS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there")
HINTS |= dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), "give access to it, or name another --output-dir"
)
HINTS[errno.ENAMETOOLONG] = "shorten the name of the class or file"


def _full_place():
    """Which place is full, where the system does not name the file that it could not write."""
    with contextlib.suppress(OSError):
        folder = tempfile.gettempdir()
        if shutil.disk_usage(folder).free < 2**20:
            return f" in {folder} (TMPDIR)"
    return ""


def explain(error):
    """An error that a run may end with, in one line for its user; None for one that is a fault of ours."""
    if isinstance(error, InputError | LostProcess):
        return str(error)
    if isinstance(error, OSError) and error.errno in HINTS:
        what = f" {error.filename!r}" if error.filename else _full_place()
        return f"{error.strerror}{what}: {HINTS[error.errno]}"
    if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
        return (
            "the memory became too small: close other programs, or make batch_size, dim or depth smaller; "
            "where an epoch was finished, --resume goes on"
        )
    return None


def exit_code(name, work, stopped="stopped"):
    """What `work()`, a whole command of this name, returns; 130 after Ctrl-C and 2 where input cannot be
    used, each said in one line."""
    try:
        return work()
    except KeyboardInterrupt:
        code, message = 130, stopped
    except Exception as error:
        code, message = 2, explain(error)
        if message is None:
            raise
    print(f"{name}: {message}", file=sys.stderr)
    return code
