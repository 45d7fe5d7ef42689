"""A zip or a folder of images -> a checked 70/30 split -> batches on the device.

The assignment's steps 1 and 2, with its three slips corrected: names are sorted before the seeded
shuffle (`os.listdir` has no fixed order), the cut is made in whole numbers (`int(n * 0.7)` can be
one too few), and images are resized to a square (`Resize(28, 28)` takes the second 28 for the
interpolation).
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import random
import re
import shutil
import tempfile
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.utils.data import TensorDataset

import synthetic
from recipe import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
# Folders of a ready-made split, which is pooled and split again; "images" stands inside them in
# some copies of NEU-DET.
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing", "images"}
TRAIN_PERCENT = 70
# A few broken files among many are left out and listed; more than this share stops the run.
MAX_UNREADABLE_PERCENT = 5


def is_image_name(path):
    """True for an image file; False for other files and what operating systems leave in archives."""
    path = PurePosixPath(path)
    junk = any(part == "__MACOSX" or part.startswith(".") for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not junk


class Limits(NamedTuple):
    """What a zip or folder may hold at most, so that a small file can't fill the disk or the day."""

    images: int = 200_000
    image_mb: float = 200  # of one image file, unpacked
    total_gb: float = 50  # of all image files of a zip, unpacked; a folder is used where it is


LIMITS = Limits()


def check_count(place, count, limits):
    """InputError if a zip or folder holds too many images."""
    if count > limits.images:
        raise InputError(
            f"{place} holds {count} images, more than {limits.images:.0f}: if that is right, add "
            f"--limit images={count}"
        )


def check_size(name, place, size, limits):
    """InputError if an image in a zip or folder has too many bytes."""
    if size > limits.image_mb * 1e6:
        raise InputError(
            f"{name!r} in {place} has {size / 1e6:.0f} MB where {limits.image_mb:g} are allowed: remove it, "
            f"or add --limit image_mb={size // 10**6 + 1}"
        )


def check_archive(zip_path, entries, others, folder, limits):
    """InputError if the image entries of a zip are none, too many, too large or ambiguous."""
    archives = [e.filename for e in others if e.filename.lower().endswith(".zip")]
    if not entries and archives:
        raise InputError(f"{zip_path} holds no images but {archives[0]!r}: unpack it and give that one")
    check_count(zip_path, len(entries), limits)
    seen = {}
    for entry in entries:
        name, key = entry.filename, entry.filename.casefold()
        if key in seen:
            both = (
                f"{seen[key]!r} and {name!r}, one file on many systems"
                if seen[key] != name
                else f"{name!r} twice"
            )
            raise InputError(f"{zip_path} holds {both}: rename or remove one")
        seen[key] = name
        check_size(name, zip_path, entry.file_size, limits)
    needed, free = sum(e.file_size for e in entries), shutil.disk_usage(folder).free
    if needed > limits.total_gb * 1e9:
        raise InputError(
            f"{zip_path} has {needed / 1e9:.1f} GB unpacked, more than {limits.total_gb:g}: if that is "
            f"right, add --limit total_gb={needed // 10**9 + 1}"
        )
    if needed > free:
        raise InputError(
            f"{zip_path} needs {needed / 1e6:.0f} MB unpacked and {folder} has "
            f"{free / 1e6:.0f} MB free: make room or name another --output-dir"
        )


def extract_images(zip_path, folder, limits):
    """Extract the images of a zip into `folder`. InputError if it is no zip, damaged, encrypted, or
    outside the limits."""
    try:
        with zipfile.ZipFile(zip_path) as archive:
            others = [e for e in archive.infolist() if e.filename and not e.is_dir()]
            entries = [e for e in others if is_image_name(e.filename)]
            check_archive(zip_path, entries, others, folder, limits)
            if any(e.flag_bits & 1 for e in entries):
                raise InputError(f"{zip_path} is encrypted: unpack it and give the folder")
            for entry in entries:  # extract() itself drops "..", drive letters and leading slashes
                archive.extract(entry, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"can't read {zip_path} as a zip ({error}): fetch it again") from None
    except (OSError, RuntimeError) as error:  # names too long or too deep, a file where a folder should be
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"can't unpack {zip_path} ({reason}): unpack it and give the folder") from None


def unzip(zip_path, folder, limits=LIMITS):
    """Extract the images of a zip into the new `folder`, all or none. InputError as above."""
    folder.mkdir(parents=True)
    try:
        extract_images(zip_path, folder, limits)
    except BaseException:
        shutil.rmtree(folder)
        raise


def walk_images(folder):
    """The paths of the images under `folder`, relative to it and sorted.

    Links to folders are followed, but no folder is entered twice: a link to one above it leads round in a
    circle. What only has an image's name (a pipe, a broken link) is among them; reading will tell.
    InputError if a folder can't be read.
    """
    images, waiting, links, entered = [], [Path(folder)], [], set()
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        if (real := os.path.realpath(here)) in entered:
            continue
        entered.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"can't read the folder {here} ({error.strerror}): give access to it, or move it away"
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


class Source(NamedTuple):
    folder: Path  # with the images
    kind: str  # "zip", "folder" or "demonstration"
    name: str  # of the zip or folder that was given


def default_source():
    """dataset.zip or dataset, the first that is in the working folder; None if neither is."""
    return next((p for p in ("dataset.zip", "dataset") if Path(p).exists()), None)


def open_source(path, run, limits=LIMITS):
    """The Source at `path`: a zip, which is unpacked to run/dataset, or a folder, which is used in place.

    "demo" draws demonstration images; None takes dataset.zip or dataset/ in the working folder, else
    draws. InputError if there is nothing at `path`, or it can't be unpacked or is outside the limits.
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


def check_name(name):
    """InputError if a name has what no page and no terminal can show: control characters, broken UTF-8,
    or marks that turn the direction of what follows."""
    turning = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    if any(unicodedata.category(c) in ("Cc", "Cs") or c in turning for c in name):
        raise InputError(f"the name {name!a} has control characters or is no UTF-8: rename it")


def find_images(folder):
    """The images under `folder` by class: {class: {name: path}}, both sorted, names unique in a class.

    The class is the first folder below any wrapper folders and any ready-made split; files without
    a class folder carry it in their name ("crazing_12.jpg", "Cr_12.bmp"). InputError where fewer
    than two classes, or a class with fewer than two images, are found.
    """
    folder = Path(folder)
    paths = walk_images(folder)
    if not paths:
        raise InputError(f"no images (jpg, png, bmp, tif) in {folder}: check --data")

    # A folder that everything stands in is a wrapper, unless it is the last hold of a class name.
    folders = {path: list(path.parts[:-1]) for path in paths}
    while len({tuple(parts[:1]) for parts in folders.values()}) == 1 and all(folders.values()):
        folders = {path: parts[1:] for path, parts in folders.items()}
    folders = {
        path: [part for part in parts if part.lower() not in SPLIT_FOLDERS] for path, parts in folders.items()
    }
    if any(folders.values()):  # class folders: pictures lying beside them belong to no class
        class_of = {path: parts[0] for path, parts in folders.items() if parts}
    else:
        matches = {path: re.match(r"(.+?)[ _\-(]*\d+\)?$", path.stem) for path in paths}
        class_of = {path: match[1] for path, match in matches.items() if match}

    for path in paths:
        check_name(path.as_posix())
    files, classes = {}, sorted(set(class_of.values()))
    for first, second in zip(by_case := sorted(classes, key=str.casefold), by_case[1:]):
        if first.casefold() == second.casefold():
            raise InputError(f"the classes {first!r} and {second!r} differ only in case: rename one")
    for name in classes:
        members = [path for path in paths if class_of.get(path) == name]
        seen = Counter(path.name for path in members)
        # Pooled train/ and val/ folders may hold the same name twice: then the whole path is it.
        files[name] = {
            path.name if seen[path.name] == 1 else "-".join(path.parts): folder / path for path in members
        }
        files[name] = dict(sorted(files[name].items()))
        if len(members) < 2:
            raise InputError(
                f"class {name!r} has a single image: at least 2 are needed, one to train and one to test"
            )
    if len(files) < 2:
        raise InputError(
            f"found no two classes in {folder}: put the images of each class in a folder of its name, "
            "or name them after their class (crazing_1.jpg)"
        )
    return files


class Picture(NamedTuple):
    """One decoded file: pixels uint8 (channels, side, side), and what it was before resizing."""

    pixels: np.ndarray
    digest: str  # of the pixels at full size: equal images have equal digests
    size: tuple  # width, height
    mode: str  # Pillow's: "L" is grey, "RGB" colour


def open_upright(path, channels):
    """The image in a file as its camera held it, 8-bit grey (channels=1) or RGB (3); its size and mode.

    OSError, ValueError or a Pillow error where the file can't be decoded.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for without end
        raise OSError("it is no regular file")
    with Image.open(path) as image:
        size, mode = image.size, image.mode
        image = ImageOps.exif_transpose(image)
        if mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: Pillow would clip, not scale
            values = np.asarray(image, dtype=np.float64)
            top = 65535.0 if values.max() > 255 else 255.0
            image = Image.fromarray((values.clip(0, top) * (255.0 / top)).round().astype(np.uint8))
        return image.convert("L" if channels == 1 else "RGB"), size, mode


def load_picture(path, side, channels):
    """Decode a file and resize it to side x side pixels. Raises what `open_upright` raises."""
    image, size, mode = open_upright(path, channels)
    digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    return Picture(np.atleast_3d(pixels).transpose(2, 0, 1).copy(), digest, size, mode)


def save_thumbnail(path, target, channels, side=240):
    """Save an image file as a JPEG (or PNG) of at most side x side pixels, for the report."""
    image, _, _ = open_upright(path, channels)
    image.thumbnail((side, side))
    image.save(target, quality=90, optimize=True)


def memory_size():
    """Bytes of main memory on this machine, or in the container where that is less."""
    try:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        sizes = [8 << 30]
    with contextlib.suppress(OSError, ValueError):  # ValueError: it says "max"
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes)


def pixel_store(shape, folder):
    """A uint8 array to fill: in memory, or in a nameless file in `folder` if it would take over a quarter
    of the memory. Batches are then read from the disk as they are needed; nothing else differs."""
    if math.prod(shape) <= memory_size() // 4:
        return np.empty(shape, np.uint8)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise InputError(
            f"{math.prod(shape) / 1e9:.1f} GB of pixels fit neither in memory nor in {folder} "
            f"({error.strerror}): make room, or choose a smaller image_size"
        ) from None


def load_pictures(files, side, channels, folder, tick=lambda: None):
    """Decode all files, in parallel: ({(class, name): Picture}, [(path, reason) of unreadable ones]).

    Pixels that are too many for the memory go to a file in `folder`. InputError if more than
    MAX_UNREADABLE_PERCENT of the files can't be read.
    """

    def load(path):
        try:
            return load_picture(path, side, channels)
        except Exception as error:  # a broken image can raise nearly anything out of a decoder
            return f"{type(error).__name__}: {error}".replace(str(path), path.name)

    # What Pillow can't read is listed; what it merely warns of (large, odd tags) was read.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    keys = [(label, name) for label in files for name in files[label]]
    paths = [files[label][name] for label, name in keys]
    store = pixel_store((len(keys), channels, side, side), folder)
    pictures, unreadable = {}, []
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for key, path, pixels, result in zip(keys, paths, store, pool.map(load, paths)):
            tick()
            if isinstance(result, Picture):
                pixels[:] = result.pixels
                pictures[key] = result._replace(pixels=pixels)
            else:
                unreadable.append((path, result))
    if len(unreadable) * 100 > len(keys) * MAX_UNREADABLE_PERCENT:
        path, reason = unreadable[0]
        raise InputError(
            f"{len(unreadable)} of {len(keys)} images can't be read, the first {path} ({reason}): "
            "replace or remove them"
        )
    return pictures, unreadable


def split_names(digests, seed=42):
    """The 70/30 split of every class, by a seeded shuffle of its sorted names.

    digests: {class: {name: digest of the pixels}}. Returns {"train": {class: [names]}, "test": ...}.
    A class of n images has n * 70 // 100 on the training side. Images of equal pixels take the same
    side, also across classes, so that no test image was trained on.
    """
    side_of, split = {}, {"train": {}, "test": {}}
    for label in sorted(digests):
        of = digests[label]
        names = sorted(of)
        quota = len(names) * TRAIN_PERCENT // 100
        copies = Counter(of.values())
        taken = sum(side_of.get(of[name]) == "train" for name in names)
        shuffled = list(names)
        random.Random(seed).shuffle(shuffled)
        for name in shuffled:
            if of[name] not in side_of:  # the first of its copies decides for all of them
                fits = taken + copies[of[name]] <= quota
                side_of[of[name]] = "train" if fits else "test"
                taken += copies[of[name]] if fits else 0
        for side in split:
            split[side][label] = [name for name in names if side_of[of[name]] == side]
    return split


def place(source, target):
    """Make `target` the same file as `source`: a hard link, else a symbolic link, else a copy."""
    if not os.path.exists(source):  # a symbolic link would lead nowhere
        raise InputError(f"{source} went away while the images were read: leave them there and run again")
    for how in (os.link, lambda s, t: os.symlink(Path(s).resolve(), t), shutil.copyfile):
        try:
            return how(source, target)
        except OSError as error:
            reason = error
    raise InputError(f"can't write {target}: {reason.strerror}")


def write_split(split, files, folder, seed):
    """Write the split as folder/train/<class>/<name> and folder/test/..., with folder/split.json."""
    folder = Path(folder)
    if (folder / "split.json").is_file():  # ours, from an earlier run
        shutil.rmtree(folder)
    elif folder.exists():
        raise InputError(f"{folder} is there already and was not written here: move it away")
    for side, classes in split.items():
        for label, names in classes.items():
            (folder / side / label).mkdir(parents=True, exist_ok=True)
            for name in names:
                place(files[label][name], folder / side / label / name)
    about = {"train_percent": TRAIN_PERCENT, "seed": seed, **split}
    (folder / "split.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")


class Split(NamedTuple):
    """One side of the split, in torchvision's ImageFolder order: by class, then by name."""

    images: torch.Tensor  # uint8 (n, channels, side, side)
    labels: torch.Tensor  # int64 (n)
    files: list  # "class/name" of each


def gather(pictures, names, folder):
    """The Split of {class: [names]}; classes are numbered in sorted order. `folder` as above."""
    keys = [(label, name) for label in sorted(names) for name in sorted(names[label])]
    number = {label: i for i, label in enumerate(sorted(names))}
    pixels = pixel_store((len(keys), *pictures[keys[0]].pixels.shape), folder)
    for row, key in zip(pixels, keys):
        row[:] = pictures[key].pixels
    return Split(
        torch.from_numpy(pixels),
        torch.tensor([number[label] for label, _ in keys]),
        [f"{label}/{name}" for label, name in keys],
    )


class Data(NamedTuple):
    classes: list
    train: Split
    test: Split
    pictures: dict  # (class, name) -> Picture
    names: dict  # {"train": {class: [names]}, "test": ...}
    unreadable: list  # (path, reason)


def load_data(folder, split_folder, recipe, tick=lambda: None):
    """Images under `folder` -> Data, and the split on disk in `split_folder`. InputError as above."""
    files = find_images(folder)
    home = Path(split_folder).parent
    pictures, unreadable = load_pictures(files, recipe.image_size, recipe.channels, home, tick)
    digests = {label: {} for label in files}
    for (label, name), picture in pictures.items():
        digests[label][name] = picture.digest
    names = split_names(digests, recipe.split_seed)
    for side in names:
        for label in names[side]:
            if not names[side][label]:
                raise InputError(
                    f"class {label!r} has no image for the {side} side once copies are kept together "
                    "and unreadable files left out: add more different images"
                )
    write_split(names, files, split_folder, recipe.split_seed)
    train, test = (gather(pictures, names[side], home) for side in ("train", "test"))
    return Data(sorted(files), train, test, pictures, names, unreadable)


def describe_data(data, recipe):
    """What the run record says of the images: JSON-ready counts, sizes, modes, copies, fingerprint."""
    copies = Counter(picture.digest for picture in data.pictures.values())
    digests = {f"{label}/{name}": p.digest for (label, name), p in sorted(data.pictures.items())}
    lines = "\n".join(f"{file} {digest}" for file, digest in digests.items())
    return {
        "classes": data.classes,
        "counts": {side: {c: len(n) for c, n in data.names[side].items()} for side in data.names},
        "split": {"train_percent": TRAIN_PERCENT, "seed": recipe.split_seed},
        "sizes": Counter("{} x {}".format(*p.size) for p in data.pictures.values()).most_common(),
        "modes": Counter(p.mode for p in data.pictures.values()).most_common(),
        "same_pixels": {
            "groups": sum(n > 1 for n in copies.values()),
            "files": [file for file, digest in digests.items() if copies[digest] > 1],
        },
        "unreadable": [{"file": path.name, "reason": reason} for path, reason in data.unreadable],
        "fingerprint": hashlib.sha256(lines.encode()).hexdigest(),
    }


def augment(images, generator, *, flip=False, transpose=False, crop=0.0, brightness=0.0, contrast=0.0):
    """Random changes to float images (b, c, side, side) in [0, 1], each image with its own numbers."""
    b, c, side, _ = images.shape

    def rand(*shape):
        return torch.rand(shape, generator=generator, device=images.device)

    if flip:
        images = torch.where(rand(b, 1, 1, 1) < 0.5, images.flip(-1), images)
        images = torch.where(rand(b, 1, 1, 1) < 0.5, images.flip(-2), images)
    if transpose:
        images = torch.where(rand(b, 1, 1, 1) < 0.5, images.transpose(-1, -2), images)
    if (pad := round(crop * side)) > 0:  # shift by up to `pad` pixels; mirrored pixels come in
        padded = F.pad(images, (pad,) * 4, mode="reflect")
        offsets = (rand(2, b) * (2 * pad + 1)).long()
        rows, columns = offsets[:, :, None] + torch.arange(side, device=images.device)
        batch = torch.arange(b, device=images.device)[:, None, None, None]
        channel = torch.arange(c, device=images.device)[None, :, None, None]
        images = padded[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]
    if contrast:
        mean = images.mean((-1, -2, -3), keepdim=True)
        images = (images - mean) * (1 + contrast * (2 * rand(b, 1, 1, 1) - 1)) + mean
    if brightness:
        images = images + brightness * (2 * rand(b, 1, 1, 1) - 1)
    return images.clamp(0, 1) if brightness or contrast else images


def mixup(images, targets, alpha, rng):
    """Blend each image and its target with another one's (Zhang et al. 2018, arXiv:1710.09412).

    images (b, ...), targets (b, classes) of shares that sum to 1, both float; the share of each
    pair is drawn from Beta(alpha, alpha) by the NumPy generator `rng`.
    """
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    share = torch.from_numpy(rng.beta(alpha, alpha, len(images))).to(images)

    def blend(x):
        lam = share.view(-1, *[1] * (x.ndim - 1))
        return lam * x + (1 - lam) * x[partner]

    return blend(images), blend(targets)


def normalize(images, standardize):
    """Float images (b, c, h, w) in [0, 1] -> mean 0, variance 1 each; or (x - 0.5) / 0.5, the template's."""
    if not standardize:
        return (images - 0.5) / 0.5
    std, mean = torch.std_mean(images, (-1, -2, -3), keepdim=True)
    return (images - mean) / (std + 1e-3)  # the 1e-3 keeps a blank image finite


class BatchLoader:
    """Batches (images, targets) of a Split, for the template's loops.

    With a `seed` the order is shuffled anew each epoch and the images are augmented by `changes`
    (the arguments of `augment`); without one both are as they are. Targets are class numbers (b),
    or with `mixup` shares of the classes (b, classes). The images lie whole on the device, unless
    they would fill more than half of a GPU's free memory: then batch by batch.
    """

    def __init__(self, split, batch_size, device, *, standardize, seed=None, changes=None, mixup=0.0):
        images = split.images
        if device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
            images = images.to(device)
        self.dataset = TensorDataset(images, split.labels.to(images.device))
        self.batch_size = batch_size
        self.part = batch_size  # images that go through the model at once; train.py lowers it
        self.device = device
        self.standardize = standardize
        self.changes = changes or {}
        self.mixup = mixup
        self.classes = int(split.labels.max()) + 1
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        self.rng = np.random.default_rng(seed)

    def __len__(self):
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self):
        images, labels = self.dataset.tensors
        if self.generator is None:
            order = torch.arange(len(labels), device=self.device)
        else:
            order = torch.randperm(len(labels), generator=self.generator, device=self.device)
        for index in order.to(images.device).split(self.batch_size):
            batch, targets = images[index].to(self.device).float() / 255, labels[index].to(self.device)
            if self.generator is not None:
                batch = augment(batch, self.generator, **self.changes)
            batch = normalize(batch, self.standardize)
            if self.mixup:
                batch, targets = mixup(batch, F.one_hot(targets, self.classes).float(), self.mixup, self.rng)
            yield batch, targets


def make_loaders(data, recipe, device):
    """The training and the test BatchLoader of a recipe."""
    changes = {
        name: getattr(recipe, name) for name in ("flip", "transpose", "crop", "brightness", "contrast")
    }
    shared = {"device": device, "standardize": recipe.standardize}
    train = BatchLoader(
        data.train, recipe.batch_size, seed=recipe.seed, changes=changes, mixup=recipe.mixup, **shared
    )
    # At most 1 GiB of attention weights at once: a CPU does not say that memory is too small.
    tokens = (recipe.image_size // recipe.patch_size) ** 2 + 1
    at_once = max(1, min(256, 2**28 // (recipe.heads * tokens**2)))
    return train, BatchLoader(data.test, at_once, **shared)
