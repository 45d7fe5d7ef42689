"""A folder of images -> a 70/30 split -> batches: the assignment's steps 1 and 2.

Three slips of the code template are corrected: names are sorted before the seeded shuffle (`os.listdir`
has no fixed order), the cut is made in whole numbers (`int(n * 0.7)` can be one too few), and images
are resized to a square (`Resize(28, 28)` takes the second 28 for the interpolation).
"""

import hashlib
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copyfile

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.utils.data import Dataset

IMAGE_SUFFIXES = [".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm"]
# A folder of a ready-made split, which is pooled and split again: train, Test, seg_train, images.
SPLIT = r"(?i)(seg.)?(train(ing)?|val(id(ation)?)?|test(ing)?|pred|ima?ge?s?)(.?(set|data|images|\d+))*"
TRAIN_PERCENT = 70


def find_images(folder, paths=None):
    """The images below a folder, or those of it at `paths`, as sorted (class, name, path) tuples. The class
    is the first folder below wrappers and ready-made splits, else in the name ("crazing_12.jpg")."""
    paths = paths or [p for p in Path(folder).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES]
    parts_of = {path: path.relative_to(folder).parts for path in sorted(paths)}
    # What systems add is hidden, or in __MACOSX.
    parts_of = {p: n for p, n in parts_of.items() if not any(x[0] == "." or x == "__MACOSX" for x in n)}
    folders = {path: [parts[:i] for i in range(1, len(parts))] for path, parts in parts_of.items()}
    places = {place for above in folders.values() for place in above}
    splits = {place for place in places if re.fullmatch(SPLIT, place[-1])}
    with_classes, with_folders = ({place[:-1] for place in some} for some in (places - splits, places))
    in_parts = {p[-1] for p in places - splits if p[:-1] in splits}
    # Where the parts of a ready-made split stand, and none of their classes ("unlabeled" is none then).
    ready = {p[:-1] for p in splits & with_classes} - {p[:-1] for p in places - splits if p[-1] in in_parts}
    # "train" is a class beside "bus" and "car", unless folders stand in it.
    splits -= {p for p in splits if p[:-1] in with_classes - ready and p not in with_folders}
    beside = {p for p in places - splits if p[:-1] in ready}
    folders = {path: above for path, above in folders.items() if not beside & {*above}}
    folders = {path: [p[-1] for p in above if p not in splits] for path, above in folders.items()}
    while len({names[0] for names in folders.values() if names}) == 1:  # a wrapper that all stand in
        folders = {path: names[1:] for path, names in folders.items()}
    class_of = {path: names[0] for path, names in folders.items() if names}  # not what lies beside them
    if not class_of:
        found = {path: re.match(r"(.*?[^\W\d_].*?)[ ._(-]*\d+\)?$", path.stem) for path in folders}
        class_of = {path: name[1] for path, name in found.items() if name}
    if len(set(class_of.values())) < 2:
        raise ValueError(f"no two classes in {folder}: put the images of each class in a folder of its name")
    # Pooled train/ and val/ folders may hold the same name twice: then the whole path is the name.
    images = [(label, path.name, path) for path, label in class_of.items()]
    seen = Counter((label, name) for label, name, _ in images)
    return sorted((a, b if seen[a, b] == 1 else "-".join(parts_of[p]), p) for a, b, p in images)


def decode(path, channels, pixel_range=(0, 65535)):
    """The image in a file, upright, 8-bit grey (channels = 1) or RGB (3). A Pillow error if it is broken."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if file.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: Pillow would clip, not scale
            low, high = pixel_range  # of a whole data set, so that a dark picture of a series stays dark
            values = np.nan_to_num(np.asarray(image, np.float32).clip(low, high), nan=low) - low
            image = Image.fromarray((values * (255 / (high - low))).round().astype(np.uint8))
        if image.has_transparency_data:  # laid on white paper
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("L" if channels == 1 else "RGB")


def read_pixels(paths, side, channels, decode=decode, store=np.empty):
    """Decode and resize n files -> (pixels, digests, faults).

    pixels: uint8 (n, channels, side, side), of `store(shape, dtype)`; digests: texts, equal where images are,
    None for an unreadable file; faults: (path, reason) of these.
    """
    pixels, faults = store((len(paths), channels, side, side), np.uint8), []

    def read(i):
        try:
            image = decode(paths[i], channels)
            small = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        except Exception as error:  # a broken image can raise nearly anything out of a decoder
            return faults.append((paths[i], f"{type(error).__name__}: {error}"))
        pixels[i] = small.reshape(side, side, channels).transpose(2, 0, 1)
        content = f"{image.size}".encode() + image.tobytes()  # at full size, where every difference shows
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        digests = list(pool.map(read, range(len(paths))))
    return pixels, digests, sorted(faults)


def choose_sides(labels, digests, seed=42):
    """The side of each image, "train" or "test": 70/30 in every class, by a seeded shuffle. Images of equal
    digests share a side, so that no test image was trained on; one without has no side."""
    side_of = {None: None}  # by digest
    for label in sorted(set(labels)):
        rows = [i for i, digest in enumerate(digests) if digest and labels[i] == label]
        copies = Counter(digests[i] for i in rows)  # how many images a decision moves at once
        quota = len(rows) * TRAIN_PERCENT // 100  # in whole numbers: int(90 * 0.7) is 62
        taken = sum(side_of.get(digests[i]) == "train" for i in rows)  # by copies in classes before
        random.Random(seed).shuffle(rows)
        for i in rows:
            if digests[i] not in side_of:  # the first of its copies decides for all of them
                fits = taken + copies[digests[i]] <= quota
                side_of[digests[i]] = "train" if fits else "test"
                taken += copies[digests[i]] * fits
        if len({side_of[digests[i]] for i in rows}) < 2:
            raise ValueError(f"class {label!r} has too few different images for two sides: add some")
    return [side_of[digest] for digest in digests]


class Split(Dataset):
    """One side of the split, sorted by class and name; item i is (pixels, label).

    pixels: uint8 (m, channels, side, side) of both sides, in which `rows`, int64 (n), are this one's;
    labels: int64 (n), places in `classes`; files: "class/name" of each; digests: as of `read_pixels`.
    """

    def __init__(self, pixels, rows, labels, classes, files, digests):
        self.pixels, self.rows, self.labels = pixels, rows, labels
        self.classes, self.files, self.digests = classes, files, digests

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.pixels[self.rows[i]], self.labels[i]

    def take(self, index):
        """The Split of some items, in the order of the places `index`, which may name one several times."""
        files, digests = ([names[i] for i in index] for names in (self.files, self.digests))
        return Split(self.pixels, self.rows[index], self.labels[index], self.classes, files, digests)


def make_splits(images, sides, pixels, digests):
    """The training and the test Split of (class, name, path) tuples on the sides "train", "test" or None."""
    classes, splits = sorted({label for label, _, _ in images}), []
    for side in ("train", "test"):
        rows = [i for i, chosen in enumerate(sides) if chosen == side]
        labels = torch.tensor([classes.index(images[i][0]) for i in rows])
        files, marks = [f"{images[i][0]}/{images[i][1]}" for i in rows], [digests[i] for i in rows]
        splits.append(Split(torch.from_numpy(pixels), torch.tensor(rows), labels, classes, files, marks))
    return splits


def load_data(folder, target, settings, images=None, read=read_pixels, group=None, copy=copyfile):
    """Copy the images below `folder` to `target`/train/<class>/ and test/<class>/, 70/30, and load them.

    Returns (training Split, test Split, [(path, reason)] of unreadable files). `images`: as of `find_images`;
    `group(paths, pixels, digests)`: what to split by. ValueError as there, and if over 5 % cannot be read.
    """
    images = images or find_images(folder)
    labels, _, paths = zip(*images)
    pixels, digests, faults = read(paths, settings.image_size, settings.channels)
    if len(faults) * 20 > len(images):  # more than a few are no accident
        count, (path, why) = f"{len(faults)} of {len(images)}", faults[0]
        raise ValueError(f"{count} images cannot be read, the first {path} ({why}): replace or remove them")
    sides = choose_sides(labels, group(paths, pixels, digests) if group else digests, settings.split_seed)
    for (label, name, path), side in zip(images, sides):
        if side:
            (Path(target) / side / label).mkdir(parents=True, exist_ok=True)
            copy(path, Path(target) / side / label / name)
    return *make_splits(images, sides, pixels, digests), faults


def load_split(folder, settings, read=read_pixels):
    """The training and the test Split of a folder with train/<class>/ and test/<class>/, as they are."""
    paths = [path for path in Path(folder).glob("*/*/*") if not path.name.startswith(".")]
    images = sorted((path.parent.name, path.name, path) for path in paths)
    paths = [path for _, _, path in images]
    pixels, digests, faults = read(paths, settings.image_size, settings.channels)
    if faults or not images:
        raise ValueError(f"put {folder} of the submitted run here, as it is ({faults or 'no images'})")
    return make_splits(images, [path.parent.parent.name for path in paths], pixels, digests)


def augment(images, settings, generator):
    """Random changes to float images (b, c, side, side) in [0, 1], each image with its own numbers."""
    b, side = len(images), images.shape[-1]

    def rand(*shape):  # drawn on the CPU: the same numbers on every device, and a GPU need not be waited for
        return torch.rand(shape, generator=generator).to(images.device, non_blocking=True)

    dims = (-1, -2) if settings.vertical_flip else (-1,)  # left-right is -1, up-down -2
    for dim in dims if settings.flip else ():
        images = torch.where(rand(b, 1, 1, 1) < 0.5, images.flip(dim), images)  # a coin for each image
    if settings.transpose:
        images = torch.where(rand(b, 1, 1, 1) < 0.5, images.mT, images)
    if (pad := round(settings.crop * side)) > 0:  # shift by up to `pad` pixels; mirrored pixels come in
        padded = F.pad(images, (pad,) * 4, mode="reflect")
        corners = (torch.rand(2, b, generator=generator) * (2 * pad + 1)).long().T.tolist()  # (top, left)
        images = torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(padded, corners)])
    if settings.contrast or settings.brightness:
        mean = images.mean((-1, -2, -3), keepdim=True)
        images = (images - mean) * (1 + settings.contrast * (2 * rand(b, 1, 1, 1) - 1)) + mean
        images = (images + settings.brightness * (2 * rand(b, 1, 1, 1) - 1)).clamp(0, 1)
    return images


def normalize(images, standardize):
    """Float images in [0, 1] -> mean 0, variance 1 each (a LayerNorm without weights); or (x - 0.5) / 0.5."""
    return F.layer_norm(images, images.shape[1:], eps=1e-6) if standardize else (images - 0.5) / 0.5


def mixup(images, targets, alpha, rng):
    """Blend images (b, c, h, w) and targets (b, classes) in pairs (Zhang et al. 2018, arXiv:1710.09412)."""
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device, non_blocking=True)
    lam = torch.from_numpy(rng.beta(alpha, alpha, (len(images), 1, 1, 1))).to(images, non_blocking=True)
    return torch.lerp(images[partner], images, lam), torch.lerp(targets[partner], targets, lam[:, 0, 0])


class BatchLoader:
    """Batches of a Split: images (b, c, side, side), and targets (b) or with mixup shares (b, classes)."""

    def __init__(self, split, settings, device, train=False):
        if train:  # rare classes are shown more often (repeat factors, Gupta et al. 2019, arXiv:1908.03195)
            counts = torch.bincount(split.labels)[split.labels]
            times = settings.repeats * (counts.max() / counts) ** settings.balance
            split = split.take(torch.arange(len(split)).repeat_interleave(times.round().long()))
        self.dataset, self.settings, self.device, self.train = split, settings, device, train
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.rng = np.random.default_rng(settings.seed)

    def __len__(self):
        return -(-len(self.dataset) // self.settings.batch_size)  # rounded up: the last batch may be smaller

    def __iter__(self):
        split, n = self.dataset, len(self.dataset)
        order = torch.randperm(n, generator=self.generator) if self.train else torch.arange(n)
        for index in order.split(self.settings.batch_size):
            rows = split.rows[index].to(split.pixels.device, non_blocking=True)
            images = split.pixels.index_select(0, rows).to(self.device, non_blocking=True).float().div_(255)
            targets = split.labels[index].to(self.device, non_blocking=True)
            if self.train:  # anew each epoch, and a whole batch at once
                images = augment(images, self.settings, self.generator)
            images = normalize(images, self.settings.standardize)
            if self.train and self.settings.mixup:
                targets = F.one_hot(targets, len(split.classes)).float()
                images, targets = mixup(images, targets, self.settings.mixup, self.rng)
            yield images, targets
