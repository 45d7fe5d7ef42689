#!/usr/bin/env python3
"""Damage zips and images at random and read them: each must be read, or be refused in one line.

    python bench/fuzz.py --minutes 10

Whatever else happens is printed with the number that repeats it (--from N --minutes 0), and the exit code
is 1.
"""

import argparse
import io
import random
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import lab  # noqa: F401  first: says which packages are missing

# isort: split
import numpy as np
from PIL import Image

from lab.errors import InputError
from lab.intake import open_source, read_images
from lab.limits import Limits
from lab.recipe import load_recipe

RECIPE = load_recipe("default", [("image_size", 16), ("patch_size", 4)])
# PyTorch's own limits are not the point: small ones end the hopeless cases early.
LIMITS = Limits(images=1000, image_mb=5, total_gb=0.05)
REFUSALS = ("as a zip", "cannot be read", "cannot unpack", "encrypted", "control characters", "no images")
FORMATS = (("PNG", "png"), ("JPEG", "jpg"), ("BMP", "bmp"), ("TIFF", "tif"))


def picture(dice, kind):
    mode = dice.choice(["L", "RGB", "P", "CMYK"] if kind == "TIFF" else ["L", "RGB"])
    pixels = np.random.default_rng(dice.getrandbits(32)).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, kind)
    return content.getvalue()


def damaged(dice, content, most=8):
    """`content` with a few bytes changed, cut out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(dice.randint(1, most)):
        at = dice.randrange(len(content)) if content else 0
        how = dice.randrange(5)
        if how == 0:
            content[at : at + 1] = bytes([dice.randrange(256)])
        elif how == 1:
            del content[at : at + dice.randint(1, 40)]
        elif how == 2:
            content[at:at] = content[at : at + dice.randint(1, 40)]
        elif how == 3:  # sizes and counts lie in such words
            content[at : at + 4] = dice.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
        elif dice.random() < 0.2:
            del content[at:]
    return bytes(content)


def case(number):
    """The bytes of the zip of that number."""
    dice = random.Random(number)
    content = io.BytesIO()
    method = dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    share = dice.choice([0, 0.02, 0.5])  # of the images that are damaged
    with zipfile.ZipFile(content, "w", method) as archive:
        for i in range(60):
            kind, suffix = dice.choice(FORMATS)
            image = picture(dice, kind)
            archive.writestr(
                f"{'abc'[i % 3]}/{i}.{suffix}", damaged(dice, image) if dice.random() < share else image
            )
    whole = content.getvalue()
    return damaged(dice, whole, most=3) if not share or dice.random() < 0.2 else whole


def read(number):
    """What came of that case: "read", or what it was refused for, in general words."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        path = Path(folder) / "x.zip"
        path.write_bytes(case(number))
        try:
            images = read_images(open_source(path, run, LIMITS), RECIPE, run / "split")
        except InputError as error:
            assert "\n" not in str(error), "more than one line"
            assert not (run / "split").exists(), "something is left"
            return "refused: " + next((words for words in REFUSALS if words in str(error)), "other")
        return "read, some left out" if images.facts.unreadable else "read"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, metavar="M")
    parser.add_argument("--from", type=int, default=0, metavar="N", dest="first")
    args = parser.parse_args()
    end, number, outcomes = time.monotonic() + 60 * args.minutes, args.first, Counter()
    while True:
        try:
            outcomes[read(number)] += 1
        except Exception:
            outcomes["FAULT"] += 1
            print(f"case {number}:")
            traceback.print_exc(file=sys.stdout)
        number += 1
        if time.monotonic() >= end:
            break
    print(f"cases {args.first} to {number - 1}")
    for outcome, count in outcomes.most_common():
        print(f"{count:8}  {outcome}")
    return 1 if outcomes["FAULT"] else 0


if __name__ == "__main__":
    sys.exit(main())
