"""The default recipe, fitted to the images that it is given, by what their training split alone can tell.

What a user sets stands, and so does every other recipe. Each value chosen here is a plain hyperparameter
of the run, with a reason that the report prints.
"""

import dataclasses
import math
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lab.groups import cut_folds
from lab.layout import probe
from lab.limits import MANY_PIXELS
from lab.recipe import Recipe
from train import views_of

LOOKED_AT, COLOURED = 60, 0.05  # images whose colours are looked at, and the share that makes a set coloured

CROPS = {True: 0.25, False: 0.06}  # where a defect's place says nothing, large shifts pay
# The length, in images shown: LONG, about 150 seconds on two cores, but each image FEWEST to MOST times. The
# floor is half of LONG, the ceiling about half an hour. How it was chosen: study/recorded/README.md.
LONG, FLOOR, CEILING = 60_000, 30_000, 1_000_000
FEWEST, MOST = 24, 48
EPOCH = 2_400  # what an epoch shows of a smaller set, by repeating its images

# The probe: a linear classifier on the responses to random patches (Coates, Lee, Ng 2011).
PROBED = 1_000  # images at most
SIDE, PATCH, FILTERS, FOLDS, RIDGE = 40, 7, 32, 3, 0.1
HALF = (SIDE - PATCH + 1) // 2  # of the side of a filter's responses
FEW, FEW_MIXUP = 100, 0.2  # training images below which blending pairs of them pays
SYMMETRIES = {  # each in words, and how it turns an image
    "flip": ("flipped left-right", lambda images: images.flip(-1)),
    "vertical_flip": ("up-down too", lambda images: images.flip(-2)),
    "transpose": ("transposed too", lambda images: images.mT),
}


class Fit(NamedTuple):
    """A recipe that was fitted to images, and why its values are as they are: {name: reason}."""

    recipe: Recipe
    reasons: dict[str, str]


def count_coloured(paths):
    """(how many have colours, how many were looked at) of image files, every so many of them."""
    sample = paths[:: len(paths) // LOOKED_AT + 1]
    return sum(map(is_coloured, sample)), len(sample)


def fit_colour(coloured, recipe, free):
    """The Fit of `channels`; coloured: as of `count_coloured`."""
    if "channels" not in free:
        return Fit(recipe, {})
    seen, looked_at = coloured
    recipe = dataclasses.replace(recipe, channels=3 if seen > COLOURED * looked_at else 1)
    return Fit(recipe, {"channels": f"{seen} of {looked_at} images looked at have colours"})


def is_coloured(path):
    """Whether an image file has colours."""
    about = probe(path)
    if about is None or about.size[0] * about.size[1] > MANY_PIXELS:
        return False
    try:
        with Image.open(path) as file:
            small = np.asarray(file.convert("RGB").resize((32, 32))).astype(int)
    except Exception:  # it was counted where it was read
        return False
    return float(np.ptp(small, axis=-1).mean()) > 4


def fit_length(images, recipe, free):
    """The Fit of `repeats` and `epochs` to a training split of so many images."""
    values = {}
    if "repeats" in free:
        values["repeats"] = max(1, round(EPOCH / images))
    epoch = images * values.get("repeats", recipe.repeats)
    if "epochs" in free:
        wanted = min(max(FLOOR, FEWEST * images, min(LONG, MOST * images)), CEILING)
        values["epochs"] = max(1, round(wanted / epoch))
    recipe = dataclasses.replace(recipe, **values)
    shown, times = epoch * recipe.epochs, recipe.epochs * recipe.repeats
    often = "once" if times == 1 else f"{times} times"
    why = f"{images:,} training images are shown {often} each, {shown:,} in all"
    return Fit(recipe, {name: why for name in values})


def fit_recipe(split, recipe, free):
    """The Fit of a recipe to a training Split, in those of its values whose names are in `free`."""
    recipe, reasons = fit_length(len(split), recipe, free)
    recipe, measured = _fit_invariances(split, recipe, free)
    if len(split) < FEW and "mixup" in free:
        recipe = dataclasses.replace(recipe, mixup=FEW_MIXUP)
        measured["mixup"] = f"{len(split)} training images are fewer than {FEW}"
    return Fit(recipe, reasons | measured)


def _fit_invariances(split, recipe, free):
    """The Fit of `standardize`, flips, transposition and shifts, to what tells the classes apart."""
    symmetries = [name for name in SYMMETRIES if name in free]
    measured = [name for name in ("standardize", *symmetries, "crop") if name in free]
    if not measured:
        return Fit(recipe, {})
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:PROBED]
    labels, pixels = split.labels[rows], split.pixels[split.rows[rows]]
    groups = [split.digests[row] for row in rows]
    if torch.bincount(labels).max() < FOLDS or len(set(groups)) < FOLDS:
        few = "too few images a class, or groups of them, to measure what is lost by it"
        return Fit(recipe, dict.fromkeys(measured, few))
    cut = cut_folds(labels, groups, FOLDS)
    folds = [tuple(map(torch.from_numpy, sides)) for sides in cut]
    among = f"{len(labels)} held-out training images, mean of the classes"
    values, reasons = {}, {}
    probe = _Probe(_shrink(pixels, recipe.standardize), labels, folds)
    if "standardize" in free:
        other = _Probe(_shrink(pixels, not recipe.standardize), labels, folds)
        few, raw = (probe, other) if recipe.standardize else (other, probe)
        # Light is kept where losing it doubles the errors, and beyond two standard errors of the difference.
        noise = 2 * math.sqrt((few.share + raw.share) / len(labels))
        lost = few.share > 2 * raw.share and few.share - raw.share > noise
        values["standardize"], probe = not lost, raw if lost else few
        reasons["standardize"] = (
            f"a linear classifier errs on {few.share:.1%} standardised, on {raw.share:.1%} not ({among})"
        )
    if symmetries:
        kept, words = probe.symmetries()
        values |= {name: name in kept for name in symmetries}
        reasons |= dict.fromkeys(symmetries, f"a linear classifier errs {words} ({among})")
    if "crop" in free:
        kept, words = probe.shifts()
        values["crop"] = CROPS[kept]
        reasons["crop"] = f"a linear classifier errs {words} ({among})"
    return Fit(dataclasses.replace(recipe, **values), reasons)


class _Probe:
    """A linear classifier's errors on held-out images: how many, and whether changed views add to them.

    images: float (n, c, SIDE, SIDE); labels: (n); folds: (rest, held out), as rows, that hold out each once.
    `share`: of images that it errs on, mean of the classes.
    """

    def __init__(self, images, labels, folds):
        self.images, self.labels, self.folds = images, labels, folds
        self.filters = _filters(images)
        counts = torch.bincount(labels)
        self.weight = 1 / (counts.count_nonzero() * counts[labels])
        self.seen = [_features(images, self.filters)]
        self.wrong = self._wrong(self.seen)
        self.share = float(self.weight @ self.wrong)

    def symmetries(self):
        """(names of the SYMMETRIES by which nothing is lost, the errors in words)."""
        views, seen, kept, words = [self.images], self.seen, [], [f"on {self.share:.1%} as they are"]
        for name, (about, turn) in SYMMETRIES.items():  # each on top of those before
            turned = [turn(view) for view in views]
            views, seen = views + turned, seen + [_features(view, self.filters) for view in turned]
            wrong = self._wrong(seen)
            words.append(f"on {float(self.weight @ wrong):.1%} {about}")
            if is_lost(self.wrong, wrong, self.weight):
                break
            kept.append(name)
        return kept, ", ".join(words)

    def shifts(self):
        """(whether nothing is lost by large shifts, the errors in words)."""
        pad = round(CROPS[True] * SIDE)
        corners = SimpleNamespace(crop=CROPS[True], patch_size=4 * pad, flip=False, transpose=False)
        shifted = [_features(view, self.filters) for view in views_of(self.images, corners)]
        wrong = self._wrong(self.seen + shifted)
        share, side = float(self.weight @ wrong), f"{CROPS[True]:.0%} of the side"
        words = f"on {self.share:.1%} as they are, on {share:.1%} shifted by {side} too"
        return not is_lost(self.wrong, wrong, self.weight), words

    def _wrong(self, views):
        """(n): 1 where the image is taken for another class by what its views' features tell."""
        wrong = torch.zeros(len(self.labels))
        for rest, held_out in self.folds:
            answers = _answers(views, self.labels, rest, held_out)
            wrong[held_out] = (answers != self.labels[held_out]).float()
        return wrong


def is_lost(wrong, changed, weight):
    """Whether a classifier errs more on changed images, by more than a standard error of the difference
    (Breiman et al. 1984); paired, as both saw the same images. All (n): 1 where it errs, or the weight."""
    difference = weight * (changed - wrong)
    return float(difference.sum()) > float(difference.square().sum().sqrt())


def _shrink(pixels, standardize):
    """uint8 (n, c, h, w) -> float (n, c, SIDE, SIDE): each image standardised, or all of them alike."""
    images = torch.empty(len(pixels), pixels.shape[1], SIDE, SIDE)
    for small, part in zip(images.split(64), pixels.split(64)):  # as float they take four times the memory
        small[:] = F.interpolate(part.float(), (SIDE, SIDE), mode="area")
    if standardize:
        return F.layer_norm(images, images.shape[1:], eps=1e-3)
    return (images - images.mean()) / (images.std() + 1e-3)


def _filters(images):
    """Whitened random patches of the images: (FILTERS, c, PATCH, PATCH)."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(len(images), (2000,), generator=generator).tolist()
    ys, xs = torch.randint(SIDE - PATCH + 1, (2, 2000), generator=generator).tolist()
    patches = [images[i, :, y : y + PATCH, x : x + PATCH].flatten() for i, y, x in zip(row, ys, xs)]
    patches = torch.stack(patches)
    patches -= patches.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    whiten = vectors * (values.clamp(min=0) + 0.1 * values.mean() + 1e-6).rsqrt() @ vectors.T
    filters = F.normalize(patches[:FILTERS] @ whiten, dim=1) @ whiten
    return filters.view(FILTERS, images.shape[1], PATCH, PATCH)


def _features(images, filters):
    """(n, d): the mean response of each filter in each quarter, its largest one, and the image in 4 x 4."""
    parts, filters = [], filters.to(memory_format=torch.channels_last)  # twice as fast for so few channels
    for part in images.to(memory_format=torch.channels_last).split(16):
        response = F.conv2d(part, filters)
        highest, lowest = response.amax((-2, -1)), response.amin((-2, -1))
        beyond = F.softshrink(response, 1.0)  # what is above 1 less what is below -1
        both, signed = F.avg_pool2d(beyond.abs(), HALF), F.avg_pool2d(beyond, HALF)
        means = [(both + signed) / 2, (both - signed) / 2, F.adaptive_avg_pool2d(part, 4)]
        parts.append(torch.cat([highest, -lowest, *(m.flatten(1) for m in means)], 1))
    return torch.cat(parts)


def _answers(views, labels, rest, held_out):
    """The classes of the images held out, by ridge regression on all views (n, d) of the rest."""
    x, y = torch.cat([view[rest] for view in views]), F.one_hot(labels).float()[rest].repeat(len(views), 1)
    mean, scale = x.mean(0), x.std(0) + 1e-3
    x = (x - mean) / scale
    weight = y @ y.sum(0).clamp(min=1).rsqrt()[:, None]  # rare classes count more, as in the training
    weight /= weight.mean()
    middle = (weight * y).mean(0)
    gram = (weight * x).T @ x / len(x) + RIDGE * torch.eye(x.shape[1])
    solution = torch.linalg.solve(gram, (weight * x).T @ (y - middle) / len(x))
    answers = sum((view[held_out] - mean) / scale @ solution for view in views) + len(views) * middle
    return answers.argmax(1)
