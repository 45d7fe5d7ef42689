"""What a zip or folder may hold at most: `--limit NAME=N`."""

import re
from typing import NamedTuple

from lab.errors import InputError


class Limits(NamedTuple):
    """So that a small file cannot fill the disk or the day."""

    images: int = 200_000
    image_mb: float = 200  # of one image file, unpacked
    total_gb: float = 50  # of all image files of a zip, unpacked; a folder is used where it is


LIMITS = Limits()
MANY_PIXELS = 10_000_000  # of an image that is read alone, and not looked at for colours


def limits_of(texts):
    """The Limits with what texts such as "images=1000" set. InputError for other names and values."""
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in Limits._fields or not re.fullmatch(r"\d{1,12}(\.\d+)?", value):
            raise InputError(f"--limit {text}: write it as {', '.join(f'{n}=N' for n in Limits._fields)}")
        values[name] = float(value)
    return Limits(**values)
