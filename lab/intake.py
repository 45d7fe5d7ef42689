"""Strangers' files, checked and read: a zip or a folder -> Images, the graded core's splits with their facts.

lab/archives.py unpacks, lab/layout.py and lab/labels.py say which file is of which class, lab/groups.py what
belongs on one side; the core (data.py) decodes and splits. Here these are put together.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import warnings
import zipfile
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ImageFile

import data
from lab import archives, fitting, layout, synthetic
from lab.errors import InputError, first_of, printable, told
from lab.files import place, write_whole
from lab.groups import compile_group, group_images
from lab.limits import LIMITS, MANY_PIXELS
from lab.machine import pixel_store
from lab.record import Choices, Copies, DataFacts, Source, SplitFacts, Unreadable, as_json

LIT = 1000  # training images of which the brightness is measured
MOST_PIXELS = 100_000_000  # of an image that is read


class Images(NamedTuple):
    train: data.Split
    test: data.Split
    facts: DataFacts
    fit: fitting.Fit | None = None


def check_folder(folder, limits):
    """The paths of the files below a folder. InputError if they are too many, or an image is too large."""
    paths = layout.walk(folder, defaultdict(list), limits.images)
    archives.check_count(folder, len(paths), limits)
    for path in paths:
        if archives.is_image_name(path) and os.path.exists(folder / path):
            archives.check_size(path.as_posix(), folder, os.stat(folder / path).st_size, limits)
    return paths


def default_source():
    """dataset.zip or dataset, the first that is in the working folder; None if neither is."""
    return next((p for p in ("dataset.zip", "dataset") if Path(p).exists()), None)


def open_source(path, run, limits=LIMITS):
    """The Source at `path`: a zip or tar, which is unpacked to run/dataset, or a folder, which is used in
    place unless it holds nothing but archives.

    "demo" draws demonstration images; None takes dataset.zip or dataset/ in the working folder, else
    draws. InputError if there is nothing at `path`, or it cannot be unpacked or is outside the limits.
    """
    if path is None:
        path = default_source() or "demo"
    if path == "demo":
        path = run / "dataset.zip"
        synthetic.write_dataset(path)
    path, unpacked = Path(path), run / "dataset"
    if path.is_dir():
        files = check_folder(path, limits)
        packed = archives.inner_archives(path)
        if not packed or archives.has_classes(path):
            return Source(path, "folder", path.resolve().name)
        notes = archives.unpack(packed, path, unpacked, limits)
        notes = [f"unpacked {first_of([printable(archive.name) for archive in packed])}", *notes]
        if beside := [file for file in files if not archives.is_archive_name(file)]:
            name = printable(beside[0].as_posix())
            notes.append(
                f"{len(beside)} files beside the archives are not used (as {name}): unpack all to use them"
            )
        return Source(unpacked, "folder", path.resolve().name, False, tuple(notes))
    if not path.is_file():
        if re.match("https?:/", str(path)):
            raise InputError(f"--data {path} is an address: download it, and name the file")
        raise InputError(f"--data {path}: there is no such zip or folder")
    archives.check_whole(path)
    notes = archives.unpack([path], path.parent, unpacked, limits)
    drawn, is_zip = False, zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            drawn = archive.comment == synthetic.MARK
    return Source(
        unpacked, "demonstration" if drawn else "zip", path.name, is_zip and not notes, tuple(notes)
    )


# Images


def decode_in(pixel_range):
    """data.decode with the scale of a set of images of more than 8 bits; None where there is none."""
    return partial(data.decode, pixel_range=pixel_range) if pixel_range else data.decode


class Decoder:
    """data.decode for strangers' files: refuses what would be waited for without end, keeps each file's size
    and mode in `about`, and calls `tick` after each."""

    def __init__(self, tick, pixel_range=None):
        self.tick = tick
        self.decode = decode_in(pixel_range)
        self.about = {}  # path -> ((width, height), Pillow's mode)
        self.one_at_a_time = threading.Lock()

    def __call__(self, path, channels):
        # WeasyPrint has Pillow accept files that were cut off, in the whole process: the submitted code,
        # which does not import it, would see other images.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise OSError("it is not a regular file")
            about = layout.probe(path)
            if about is None and os.path.exists(path):
                raise OSError(layout.describe_content(path))
            pixels = about.size[0] * about.size[1] if about else 0
            if pixels > MOST_PIXELS:
                raise OSError(f"it has {pixels / 1e6:.0f} million pixels, more than {MOST_PIXELS / 1e6:.0f}")
            # A small file may hold so many that two dozen threads together would fill the memory.
            with self.one_at_a_time if pixels > MANY_PIXELS else contextlib.nullcontext():
                image = self.decode(path, channels)
            self.about[path] = about.size, about.mode
            return image
        finally:
            self.tick()


def measure_range(paths, notes):
    """(low, high) of images with more than 8 bits: what becomes 0 and 255 in all of them, so that a dark
    picture of a series stays dark; None for none. A thousandth of each image's pixels may lie outside. Notes
    how many have pixels that are no numbers."""
    low, high, odd = np.inf, -np.inf, 0
    for path in paths:
        try:
            with data.Image.open(path) as file:
                if file.size[0] * file.size[1] > MOST_PIXELS:
                    continue
                values = np.asarray(file).astype(np.float32)
        except Exception:  # reading it will tell
            continue
        measured = values[np.isfinite(values)]  # a pixel without a measurement is NaN
        odd += measured.size < values.size
        if measured.size:
            least, most = np.percentile(measured, (0.1, 99.9))
            low, high = min(low, float(least)), max(high, float(most))
    if odd:
        notes.append(f"{odd} images have pixels that are not numbers: NaN is black, infinity white")
    return (low, high) if low < high else None


class Grouping:
    """The `group` argument of data.load_data: which images stay on one side, and what is to say of it."""

    def __init__(self, folder, images, pattern):
        self.folder, self.images, self.pattern = folder, images, pattern
        self.together, self.notes, self.plain, self.of_digest = [], [], True, {}

    def __call__(self, paths, pixels, digests):
        """-> the group of each image. InputError where the images are flat."""
        flat = [i for i, digest in enumerate(digests) if digest and pixels[i].max() - pixels[i].min() < 2]
        if 2 * len(flat) > len(digests):
            raise InputError(
                f"{len(flat)} of {len(digests)} images are of one flat grey once decoded (as "
                f"{paths[flat[0]]}): convert them to 8-bit PNG with the contrast that is to be seen"
            )
        names = [path.relative_to(self.folder).as_posix() for path in paths]
        groups, self.together, self.notes = group_images(self.images, names, pixels, digests, self.pattern)
        if self.pattern:
            self._check_classes(groups, digests)
        self.of_digest = dict(zip(digests, groups))
        # Whether equal digests alone, as the submitted code has them, give the same groups.
        self.plain = len(set(zip(groups, digests))) == len(set(groups)) == len(set(digests))
        return groups

    def _check_classes(self, groups, digests):
        """InputError for a class of several different images that --group makes one group of."""
        of_class = defaultdict(lambda: (set(), set()))  # class -> its groups, and its different images
        for (label, _, _), group, digest in zip(self.images, groups, digests):
            if digest:
                of_class[label][0].add(group)
                of_class[label][1].add(digest)
        for label, (its_groups, different) in of_class.items():
            if len(its_groups) < 2 <= len(different):
                raise InputError(
                    f"--group puts all images of the class {label!r} into one group: it takes two"
                )


def read_images(source, recipe, split_folder, tick=lambda: None, choices=None, free=frozenset()):
    """The Images of a Source; their split is written to `split_folder`, with split.json. InputError as above.

    `choices`: a lab.record.Choices; `free`: names of hyperparameters to be fitted to the images. Pixels that
    are too many for the memory go to a file beside that folder.
    """
    # What Pillow cannot read is listed; what it merely warns of (large, odd tags) was read.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    choices = choices or Choices()
    pattern = compile_group(choices.group) if choices.group else None
    split_folder = Path(split_folder)
    shutil.rmtree(split_folder, ignore_errors=True)  # of a run that is resumed
    with _naming(source):
        return _read(source, recipe, split_folder, tick, choices, pattern, free)


@contextlib.contextmanager
def _naming(source):
    """In messages, the zip that was given in place of the folder that it was unpacked to."""
    try:
        yield
    except InputError as error:
        if source.kind == "folder" and source.plain:  # its path is the one that was given
            raise
        said = str(error).replace(f"{source.folder}{os.sep}", "").replace(str(source.folder), source.name)
        raise InputError(said) from None


def _read(source, recipe, split_folder, tick, choices, pattern, free):
    found = layout.understand(source.folder, choices)
    # Colours are not looked for where they are shown anyway.
    coloured = fitting.count_coloured([path for *_, path in found.images]) if recipe.channels == 1 else (0, 0)
    recipe, colour = fitting.fit_colour(coloured, recipe, free)
    pixel_range = measure_range(found.wide, found.notes) if found.wide else None
    decoder = Decoder(tick, pixel_range)
    grouping = Grouping(source.folder, found.images, pattern)
    with told():
        train, test, unreadable = data.load_data(
            source.folder,
            split_folder,
            recipe,
            images=found.images,
            read=partial(data.read_pixels, decode=decoder, store=pixel_store(split_folder.parent)),
            group=grouping,
            copy=place,
        )
    facts = describe(source, recipe, train, test, unreadable, decoder.about)
    facts.left_out, facts.kept_together, facts.choices = found.left_out, grouping.together, choices
    facts.pixel_range = pixel_range
    facts.presented = present(facts, recipe)
    facts.notes = [*source.notes, *found.notes, *grouping.notes, *_notes(facts, recipe, coloured)]
    for split in (train, test):  # the folds of a study keep groups together too
        split.digests = [grouping.of_digest[digest] for digest in split.digests]
    recipe, reasons = fitting.fit_recipe(train, recipe, free)
    facts.from_split = not (source.plain and grouping.plain and _found_alone(source.folder, found.images))
    names = {"train_percent": data.TRAIN_PERCENT, "seed": recipe.split_seed}
    names |= {side: split.files for side, split in (("train", train), ("test", test))}
    write_whole(split_folder / "split.json", as_json(names))
    return Images(train, test, facts, fitting.Fit(recipe, colour | reasons))


def _found_alone(folder, images):
    """Whether the graded core, which knows no masks and no tables, finds the same images and classes."""
    try:
        return data.find_images(folder) == images
    except ValueError:
        return False


def present(facts, recipe):
    """What the model is shown, in words."""
    side, colour = recipe.image_size, "grey" if recipe.channels == 1 else "colour"
    ratios = [max(w / h, h / w) for w, h in (map(int, size.split(" x ")) for size, _ in facts.sizes)]
    how = f"squashed to {side} x {side}" if max(ratios) > 1.02 else f"scaled to {side} x {side}"
    return f"{colour}, {how} pixels"


def _notes(facts, recipe, coloured):
    """What was converted on decoding; `coloured`: as of fitting.count_coloured."""
    sizes = [(size, *map(int, size.split(" x "))) for size, _ in facts.sizes]
    if long := next((size for size, w, h in sizes if max(w / h, h / w) >= 2), None):
        yield (
            f"long pictures ({long}) are squashed to a square, where round becomes oval: cut them into "
            "squares first if shapes matter"
        )
    if facts.pixel_range:
        low, high = facts.pixel_range
        yield f"images of more than 8 bits: {low:g} becomes black and {high:g} white in all of them"
    modes = dict(facts.modes)
    if clear := sum(modes.get(mode, 0) for mode in ("RGBA", "LA", "PA")):
        yield f"{clear} images with an alpha channel are laid on white, where they are transparent"
    seen, looked_at = coloured
    if recipe.channels == 1 and seen:
        yield (
            f"{seen} of {looked_at} images looked at have colours and are shown in grey: if the classes "
            "differ in colour, add --set channels=3"
        )


def describe(source, recipe, train, test, unreadable, about):
    """The DataFacts of two splits; `about` is a Decoder's."""
    digest_of = dict(zip(train.files + test.files, train.digests + test.digests))
    files = sorted(digest_of, key=lambda file: file.split("/", 1))
    lines = "\n".join(f"{file} {digest_of[file]}" for file in files)

    def counts(split):
        of_class = Counter(split.labels.tolist())
        return {name: of_class[number] for number, name in enumerate(split.classes)}

    lit = [float(train.pixels[row].float().mean()) for row in train.rows[:: -(-len(train) // LIT)]]
    of_digest = defaultdict(list)
    for file in files:
        of_digest[digest_of[file]].append(file)
    copies = [same for same in of_digest.values() if len(same) > 1]
    broken = {path for path, _ in unreadable}
    read = [what for path, what in about.items() if path not in broken]
    return DataFacts(
        source=source.kind,
        name=source.name,
        demonstration=source.kind == "demonstration",
        classes=train.classes,
        counts={"train": counts(train), "test": counts(test)},
        split=SplitFacts(data.TRAIN_PERCENT, recipe.split_seed),
        sizes=_counted("{} x {}".format(*size) for size, _ in read),
        modes=_counted(mode for _, mode in read),
        same_pixels=Copies(len(copies), [f for f in files if len(of_digest[digest_of[f]]) > 1]),
        unreadable=[_named(source, *fault) for fault in unreadable],
        fingerprint=hashlib.sha256(lines.encode()).hexdigest(),
        light=tuple(np.percentile(lit, (1, 99)).round(1).tolist()),
        contradictions=[" and ".join(same) for same in copies if len({f.split("/")[0] for f in same}) > 1],
    )


def _counted(kinds):
    """[(kind, how often)], most often first; ties in the order of the alphabet, as threads come in any."""
    return sorted(Counter(kinds).items(), key=lambda row: (-row[1], row[0]))


def _named(source, path, reason):
    name = Path(path).relative_to(source.folder).as_posix()
    return Unreadable(name, reason.replace(str(path), name))


def load_images(path, recipe, limits=LIMITS, choices=None, free=frozenset()):
    """The Images of a zip or folder, for such a recipe; `free` as for `read_images`. Only the pixels stay;
    the files are cleared away."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        source = open_source(path, run, limits)
        images = read_images(source, recipe, run / "dataset_split", choices=choices, free=free)
    if images.facts.unreadable:
        raise InputError(f"{len(images.facts.unreadable)} images cannot be read: remove them before a study")
    return images


def save_thumbnail(path, target, channels, side, decode):
    """Save an image file as a JPEG of at most side x side pixels -> its (width, height)."""
    image = decode(path, channels)
    image.thumbnail((side, side))
    image.save(target, "JPEG", quality=90, optimize=True)
    return image.size
