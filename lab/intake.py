"""Strangers' files, checked and read: a zip or a folder -> Images, the graded core's splits with their facts.

The core (data.py) finds classes, decodes, splits; here is what it does not see: hostile zips, links,
limits, names that no page can show, disks that are full.
"""

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import shutil
import tempfile
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

import data
from lab import synthetic
from lab.errors import InputError, told
from lab.files import place, write_whole
from lab.limits import LIMITS
from lab.machine import pixel_store
from lab.record import Copies, DataFacts, SplitFacts, Unreadable, as_json


class Source(NamedTuple):
    folder: Path  # with the images
    kind: str  # "zip", "folder" or "demonstration"
    name: str  # of the zip or folder that was given


class Images(NamedTuple):
    train: data.Split
    test: data.Split
    facts: DataFacts


def is_image_name(path):
    """Whether a relative path is that of an image, and not one of what systems leave in archives."""
    path = PurePosixPath(path)
    hidden = any(part == "__MACOSX" or part.startswith(".") for part in path.parts)
    return path.suffix.lower() in data.IMAGE_SUFFIXES and not hidden


# Zips


def check_count(where, count, limits):
    """InputError if a zip or folder holds too many images."""
    if count > limits.images:
        raise InputError(
            f"{where} holds {count} images, more than {limits.images:.0f}: if that is right, add "
            f"--limit images={count}"
        )


def check_size(name, where, size, limits):
    """InputError if an image in a zip or folder has too many bytes."""
    if size > limits.image_mb * 1e6:
        raise InputError(
            f"{name!r} in {where} has {size / 1e6:.0f} MB where {limits.image_mb:g} are allowed: remove it, "
            f"or add --limit image_mb={size // 10**6 + 1}"
        )


def check_names(zip_path, entries):
    """InputError if two entries of a zip would be one file, here or on other systems."""
    seen = {}
    for entry in entries:
        name, key = entry.filename, entry.filename.casefold()
        if key in seen and seen[key] != name:
            both = f"{seen[key]!r} and {name!r}, one file on many systems"
            raise InputError(f"{zip_path} holds {both}: rename or remove one")
        if key in seen:
            raise InputError(f"{zip_path} holds {name!r} twice: rename or remove one")
        seen[key] = name


def check_archive(zip_path, entries, folder, limits):
    """InputError if the image entries of a zip are too many, too large, ambiguous or encrypted."""
    check_count(zip_path, len(entries), limits)
    check_names(zip_path, entries)
    for entry in entries:
        check_size(entry.filename, zip_path, entry.file_size, limits)
    if any(entry.flag_bits & 1 for entry in entries):
        raise InputError(f"{zip_path} is encrypted: unpack it and give the folder")
    # Checked on what the zip says of itself; zipfile stops an entry that turns out longer.
    needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
    if needed > limits.total_gb * 1e9:
        raise InputError(
            f"{zip_path} has {needed / 1e9:.1f} GB unpacked, more than {limits.total_gb:g}: if that is "
            f"right, add --limit total_gb={needed // 10**9 + 1}"
        )
    if needed > free:
        raise InputError(
            f"{zip_path} needs {needed / 1e6:.0f} MB unpacked and {folder} has {free / 1e6:.0f} MB free: "
            "make room or name another --output-dir"
        )


def extract_images(zip_path, folder, limits):
    """Extract the images of a zip into `folder`. InputError if it is not a zip, damaged, encrypted, or
    outside the limits."""
    try:
        with zipfile.ZipFile(zip_path) as archive:
            files = [e for e in archive.infolist() if e.filename and not e.is_dir()]
            entries = [e for e in files if is_image_name(e.filename)]
            inner = [e.filename for e in files if e.filename.lower().endswith(".zip")]
            if inner and not entries:
                raise InputError(f"{zip_path} holds no images but {inner[0]!r}: unpack it and give that one")
            check_archive(zip_path, entries, folder, limits)
            archive.extractall(folder, entries)  # which itself drops "..", drive letters and leading slashes
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"cannot read {zip_path} as a zip ({error}): fetch it again") from None
    except (OSError, RuntimeError) as error:  # names too long or too deep, a file where a folder should be
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot unpack {zip_path} ({reason}): unpack it and give the folder") from None


def unzip(zip_path, folder, limits=LIMITS):
    """Extract the images of a zip into the new `folder`, all or none. InputError as above."""
    folder.mkdir(parents=True)
    try:
        extract_images(zip_path, folder, limits)
    except BaseException:
        shutil.rmtree(folder)
        raise


# Folders


def walk_images(folder):
    """The paths of the images under `folder`, relative to it and sorted.

    Links to folders are followed, but no folder is entered twice: a link to one above it leads round in a
    circle. What only has an image's name (a pipe, a broken link) is among them; reading will tell.
    InputError if a folder cannot be read.
    """
    images, waiting, links, entered = [], [Path(folder)], [], set()
    while waiting or links:
        # Links last: a folder is then known by its own path, not by that of a link to it.
        here = waiting.pop() if waiting else links.pop(0)
        if (real := os.path.realpath(here)) in entered:
            continue
        entered.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"cannot read the folder {here} ({error.strerror}): give access to it, or move it away"
            ) from None
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if os.path.isdir(entry.path):
                (links if entry.is_symlink() else waiting).append(Path(entry.path))
            elif is_image_name(entry.name):
                images.append(Path(entry.path).relative_to(folder))
    return sorted(images)


def check_folder(folder, limits):
    """InputError if a folder holds too many images, or one that is too large."""
    paths = walk_images(folder)
    check_count(folder, len(paths), limits)
    for path in paths:
        with contextlib.suppress(OSError):  # a broken link
            check_size(path.as_posix(), folder, os.stat(folder / path).st_size, limits)


def default_source():
    """dataset.zip or dataset, the first that is in the working folder; None if neither is."""
    return next((p for p in ("dataset.zip", "dataset") if Path(p).exists()), None)


def open_source(path, run, limits=LIMITS):
    """The Source at `path`: a zip, which is unpacked to run/dataset, or a folder, which is used in place.

    "demo" draws demonstration images; None takes dataset.zip or dataset/ in the working folder, else
    draws. InputError if there is nothing at `path`, or it cannot be unpacked or is outside the limits.
    """
    if path is None:
        path = default_source() or "demo"
    if path == "demo":
        path = run / "dataset.zip"
        synthetic.write_dataset(path)
    path = Path(path)
    if path.is_dir():
        check_folder(path, limits)
        return Source(path, "folder", path.resolve().name)
    if not path.is_file():
        raise InputError(f"--data {path}: there is no such zip or folder")
    unzip(path, run / "dataset", limits)
    with zipfile.ZipFile(path) as archive:
        drawn = archive.comment == synthetic.MARK
    return Source(run / "dataset", "demonstration" if drawn else "zip", path.name)


# Images


def check_name(name):
    """InputError if a name has what no page and no terminal can show: control characters, broken UTF-8,
    or marks that turn the direction of what follows."""
    turning = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    if any(unicodedata.category(c) in ("Cc", "Cs") or c in turning for c in name):
        raise InputError(f"the name {name!a} has control characters or is not UTF-8: rename it")


def check_classes(folder, paths):
    """InputError where there are no images, or names cannot be shown or told apart."""
    if not paths:
        raise InputError(f"no images (jpg, png, bmp, tif) in {folder}: check --data")
    for path in paths:
        check_name(path.as_posix())
    classes = {label for label, _, _ in data.find_images(folder, paths)}
    by_case = sorted(sorted(classes), key=str.casefold)  # a set has no order of its own
    for first, second in itertools.pairwise(by_case):  # one folder on Windows and macOS
        if first.casefold() == second.casefold():
            raise InputError(f"the classes {first!r} and {second!r} differ only in case: rename one")


class Decoder:
    """data.decode for strangers' files: refuses what would be waited for without end, keeps each file's size
    and mode in `about`, and calls `tick` after each."""

    def __init__(self, tick):
        self.tick = tick
        self.about = {}  # path -> ((width, height), Pillow's mode)

    def __call__(self, path, channels):
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise OSError("it is not a regular file")
            with Image.open(path) as file:
                about = file.size, file.mode
            image = data.decode(path, channels)
            self.about[path] = about
            return image
        finally:
            self.tick()


def read_images(source, recipe, split_folder, tick=lambda: None):
    """The Images of a Source; their split is written to `split_folder`, with split.json. InputError as above.

    Pixels that are too many for the memory go to a file beside that folder.
    """
    # What Pillow cannot read is listed; what it merely warns of (large, odd tags) was read.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    split_folder, decoder = Path(split_folder), Decoder(tick)
    shutil.rmtree(split_folder, ignore_errors=True)  # of a run that is resumed
    paths = walk_images(source.folder)
    with told():
        check_classes(source.folder, paths)
        train, test, unreadable = data.load_data(
            source.folder,
            split_folder,
            recipe,
            paths=paths,
            decode=decoder,
            store=pixel_store(split_folder.parent),
            copy=place,
        )
    facts = describe(source, recipe, train, test, unreadable, decoder.about)
    names = {"train_percent": data.TRAIN_PERCENT, "seed": recipe.split_seed}
    names |= {side: split.files for side, split in (("train", train), ("test", test))}
    write_whole(split_folder / "split.json", as_json(names))
    return Images(train, test, facts)


def describe(source, recipe, train, test, unreadable, about):
    """The DataFacts of two splits; `about` is a Decoder's."""
    digest_of = dict(zip(train.files + test.files, train.digests + test.digests))
    files = sorted(digest_of, key=lambda file: file.split("/", 1))
    copies = Counter(digest_of.values())
    lines = "\n".join(f"{file} {digest_of[file]}" for file in files)

    def counts(split):
        of_class = Counter(split.labels.tolist())
        return {name: of_class[number] for number, name in enumerate(split.classes)}

    broken = {path for path, _ in unreadable}
    read = [what for path, what in about.items() if path not in broken]
    return DataFacts(
        source=source.kind,
        name=source.name,
        demonstration=source.kind == "demonstration",
        classes=train.classes,
        counts={"train": counts(train), "test": counts(test)},
        split=SplitFacts(data.TRAIN_PERCENT, recipe.split_seed),
        sizes=Counter("{} x {}".format(*size) for size, _ in read).most_common(),
        modes=Counter(mode for _, mode in read).most_common(),
        same_pixels=Copies(
            sum(n > 1 for n in copies.values()), [f for f in files if copies[digest_of[f]] > 1]
        ),
        unreadable=[Unreadable(path.name, reason) for path, reason in unreadable],
        fingerprint=hashlib.sha256(lines.encode()).hexdigest(),
    )


def load_images(path, recipe, limits=LIMITS):
    """The Images of a zip or folder, for such a recipe. Only the pixels stay; the files are cleared away."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        images = read_images(open_source(path, run, limits), recipe, run / "dataset_split")
    if images.facts.unreadable:
        raise InputError(f"{len(images.facts.unreadable)} images cannot be read: remove them before a study")
    return images


def save_thumbnail(path, target, channels, side=240):
    """Save an image file as a JPEG of at most side x side pixels, for the report."""
    image = data.decode(path, channels)
    image.thumbnail((side, side))
    image.save(target, quality=90, optimize=True)
