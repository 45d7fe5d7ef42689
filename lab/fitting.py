"""The default recipe, fitted to the images that it is given, by what their training split alone can tell.

What a user sets stands, and so does every other recipe. Each value chosen here is a plain hyperparameter
of the run, with a reason that the report prints.
"""

import dataclasses
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
# The length, in images shown: LONG, 150 to 350 seconds on two cores, but each image FEWEST to MOST times. The
# floor is half of LONG, the ceiling about half an hour. How it was chosen: study/recorded/README.md.
LONG, FLOOR, CEILING = 60_000, 30_000, 1_000_000
FEWEST, MOST = 24, 48
HARD = 0.1  # of R²: where the linear classifier explains less, a small set is shown LONG images, too
EPOCH = 2_400  # what an epoch shows of a smaller set, by repeating its images

# The probe: a linear classifier on the responses to random patches (Coates, Lee, Ng 2011).
PROBED = 1_000  # images at most
SIDE, PATCH, FILTERS, FOLDS, RIDGE = 40, 7, 32, 3, 0.1
HALF = (SIDE - PATCH + 1) // 2  # of the side of a filter's responses
# Of R², what may be lost: on NEU-CLS and X-SDD, where they pay, large shifts cost up to 0.02, flips 0.01.
SHIFTED, TURNED = 0.03, 0.015
# Of R², by which the largest responses must explain more than the mean ones. The maximum over places finds
# what fills little of an image (Oquab et al., CVPR 2015), the mean tells textures that are everywhere.
POOLED = 0.03
LIGHT, DIM = 1.5, 0.05  # times as much left unexplained without the light of the images, and more: it is kept
FEW, FEW_MIXUP = 100, 0.2  # training images below which blending pairs pays, and a mimetic start may not
SYMMETRIES = {  # each in words, and how it turns an image
    "flip": ("with left-right flips", lambda images: images.flip(-1)),
    "vertical_flip": ("with up-down flips too", lambda images: images.flip(-2)),
    "transpose": ("with transposition too", lambda images: images.mT),
}


class Fit(NamedTuple):
    """A recipe that was fitted to images, and why its values are as they are: {name: reason}."""

    recipe: Recipe
    reasons: dict[str, str]


def count_coloured(paths):
    """(how many have colours, how many were looked at) of image files, every so many of them."""
    sample = paths[:: -(-len(paths) // LOOKED_AT) or 1]
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


def fit_length(images, recipe, free, explained=1.0, balanced=1.0):
    """The Fit of `repeats` and `epochs` to a training split of so many images, of whose classes a linear
    classifier explains so much (R²). balanced: as many times as many are shown for the rare classes' sake."""
    values, most = {}, MOST * images if explained >= HARD else LONG
    if "repeats" in free:
        values["repeats"] = max(1, round(EPOCH / images))
    epoch = images * values.get("repeats", recipe.repeats)
    if "epochs" in free:
        wanted = min(max(FLOOR, FEWEST * images, min(LONG, most)), CEILING)
        values["epochs"] = max(1, round(wanted / epoch))
    recipe = dataclasses.replace(recipe, **values)
    shown, times = epoch * recipe.epochs, recipe.epochs * recipe.repeats
    often = "once" if times == 1 else f"{times} times"
    rare = ", those of rare classes more often, about" if balanced > 1 else ","
    why = f"{images:,} training images are shown {often} each{rare} {round(shown * balanced):,} in all"
    if most > MOST * images:
        why += f": longer, as a linear classifier explains little (R² {explained:.3f} is less than {HARD})"
    return Fit(recipe, {name: why for name in values})


def fit_recipe(split, recipe, free):
    """The Fit of a recipe to a training Split, in those of its values whose names are in `free`."""
    recipe, measured, explained = _fit_invariances(split, recipe, free)
    counts = torch.bincount(split.labels)[split.labels]
    balanced = float(((counts.max() / counts) ** recipe.balance).mean())
    recipe, reasons = fit_length(len(split), recipe, free, explained, balanced)
    if len(split) < FEW:
        few = f"{len(split)} training images are fewer than {FEW}"
        if "mixup" in free:
            recipe = dataclasses.replace(recipe, mixup=FEW_MIXUP)
            measured["mixup"] = few
        # Where a place says nothing, too few images undo a start that tells places apart.
        if "mimetic" in free and recipe.crop > CROPS[False]:
            recipe = dataclasses.replace(recipe, mimetic=False)
            measured["mimetic"] = f"{few}, and large shifts lose nothing"
    return Fit(recipe, reasons | measured)


def _fit_invariances(split, recipe, free):
    """The Fit of `standardize`, `pool`, flips, transposition and shifts to what tells the classes apart, and
    how much of them a linear classifier explains (R²; 1 where that is not measured)."""
    symmetries = [name for name in SYMMETRIES if name in free]
    measured = [name for name in ("standardize", "pool", *symmetries, "crop") if name in free]
    if not measured:
        return *Fit(recipe, {}), 1.0
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:PROBED]
    labels, pixels = split.labels[rows], split.pixels[split.rows[rows]]
    groups = [split.digests[row] for row in rows]
    if torch.bincount(labels).max() < FOLDS or len(set(groups)) < FOLDS:
        few = "too few images a class, or groups of them, to measure what is lost by it"
        return *Fit(recipe, dict.fromkeys(measured, few)), 1.0
    cut = cut_folds(labels, groups, FOLDS)
    folds = [tuple(map(torch.from_numpy, sides)) for sides in cut]
    among = f"{len(labels):,} held-out training images"
    values, reasons = {}, {}
    images = _shrink(pixels)
    linear = _Probe(_normalize(images, recipe.standardize), labels, folds)
    if "standardize" in free:
        other = _Probe(_normalize(images, not recipe.standardize), labels, folds)
        even, raw = (linear, other) if recipe.standardize else (other, linear)
        lost = is_lost(LIGHT * raw.residual, even.residual, linear.weight, least=DIM)
        values["standardize"], linear = not lost, raw if lost else even
        words = f"{even.explained(even.residual)} standardised, {raw.explained(raw.residual)} not"
        lose = "raw only where that leaves a third less unexplained"
        reasons["standardize"] = f"R² of a linear classifier: {words} ({among}; {lose})"
    if symmetries:
        kept, words = linear.symmetries()
        values |= {name: name in kept for name in symmetries}
        lose = f"each may lose {TURNED} or a standard error, transposition against none"
        reasons |= dict.fromkeys(symmetries, f"R² of a linear classifier: {words} ({among}; {lose})")
    if {"crop", "pool"} & free:
        anywhere, shifted = linear.shifts()
        small, largest = linear.pooling()
        more = f"the largest explain at most {POOLED} or a standard error more"
        fitted = {
            "crop": (
                CROPS[anywhere],
                f"{shifted} ({among}; large shifts may lose {SHIFTED} or a standard error)",
            ),
            "pool": (
                "mean" if anywhere and not small else "max",
                f"{largest}, {shifted} ({among}; the mean only where {more}, and large shifts lose nothing)",
            ),
        }
        for name, (value, why) in fitted.items():
            if name in free:
                values[name], reasons[name] = value, f"R² of a linear classifier: {why}"
    return *Fit(dataclasses.replace(recipe, **values), reasons), linear.r_squared(linear.residual)


class _Probe:
    """How much of the classes a linear classifier explains on held-out images, and on changed views of them.

    images: float (n, c, SIDE, SIDE); labels: (n); folds: (rest, held out), as rows, that hold out each once.
    """

    def __init__(self, images, labels, folds):
        self.images, self.labels, self.folds = images, labels, folds
        self.filters = _filters(images)
        counts = torch.bincount(labels)
        self.weight = 1 / (counts.count_nonzero() * counts[labels])
        self.seen = [_features(images, self.filters)]
        self.residual = self._residual(self.seen)

    def r_squared(self, residual):
        """The coefficient of determination, mean of the classes."""
        return 1 - float(self.weight @ residual)

    def explained(self, residual):
        """It in words."""
        return f"{self.r_squared(residual):.3f}"

    def pooling(self):
        """(whether the largest responses explain more than the mean ones, what is explained in words): so it
        is where a small thing tells the class, which a mean over the image dilutes."""
        largest, rest = self.seen[0].tensor_split([2 * FILTERS], 1)
        means = rest[:, : 8 * FILTERS].unflatten(1, (2 * FILTERS, 4)).mean(2)  # of the four quarters
        residuals = [self._residual([features]) for features in (largest, means)]
        words = "{} of the largest responses, {} of the mean ones".format(*map(self.explained, residuals))
        return is_lost(*residuals, self.weight, least=POOLED), words

    def symmetries(self):
        """(names of the SYMMETRIES by which nothing is lost, what is explained in words)."""
        views, seen, before, kept = [self.images], self.seen, self.residual, []
        words = [f"{self.explained(before)} without"]
        for name, (about, turn) in SYMMETRIES.items():  # each on top of those before
            turned = [turn(view) for view in views]
            views, seen = views + turned, seen + [_features(view, self.filters) for view in turned]
            residual = self._residual(seen)
            words.append(f"{self.explained(residual)} {about}")
            # Eight views in one are the most that it can explain at all: against the images as they are.
            reference = self.residual if name == "transpose" else before
            if is_lost(reference, residual, self.weight, least=TURNED):
                break
            kept.append(name)
            before = residual
        return kept, ", ".join(words)

    def shifts(self):
        """(whether large shifts explain as much as small ones, what is explained in words)."""
        residuals, words = [], []
        for share in CROPS.values():
            corners = SimpleNamespace(crop=share, patch_size=4 * SIDE, flip=False, transpose=False)
            shifted = [_features(view, self.filters) for view in views_of(self.images, corners)]
            residuals.append(self._residual(self.seen + shifted))
            words.append(f"{self.explained(residuals[-1])} with shifts of {100 * share:.0f} % of the side")
        large, small = residuals
        return not is_lost(small, large, self.weight, least=SHIFTED), ", ".join(words)

    def _residual(self, views):
        """(n): how far an image's answers are from its class, squared, as a share of the variance."""
        target = F.one_hot(self.labels).float()
        answers = torch.empty_like(target)
        for rest, held_out in self.folds:
            answers[held_out] = _answers(views, target, rest, held_out)
        target, answers = (each - self.weight @ each for each in (target, answers))
        weight = self.weight[:, None]
        scale = (weight * answers * target).sum() / (weight * answers.square()).sum().clamp(min=1e-9)
        answers *= scale.clamp(min=0)  # many views shrink the answers, which takes nothing from them
        return (answers - target).square().sum(1) / (weight * target.square()).sum().clamp(min=1e-9)


def is_lost(residual, changed, weight, least=0.0):
    """Whether less is explained of changed images: by more than `least`, and by more than a standard error
    of the difference (Breiman et al. 1984), paired, as both are of the same images. All else (n)."""
    difference = weight * (changed - residual)
    return float(difference.sum()) > max(least, float(difference.square().sum().sqrt()))


def _shrink(pixels):
    """uint8 (n, c, h, w) -> float (n, c, SIDE, SIDE)."""
    images = torch.empty(len(pixels), pixels.shape[1], SIDE, SIDE)
    for small, part in zip(images.split(64), pixels.split(64)):  # as float they take four times the memory
        small[:] = F.interpolate(part.float(), (SIDE, SIDE), mode="area")
    return images


def _normalize(images, standardize):
    """Each image standardised, or all of them alike."""
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
        above = F.avg_pool2d(response.clamp(min=1), HALF) - 1  # the mean of what is above 1
        below = -1 - F.avg_pool2d(response.clamp_(max=-1), HALF)
        rough = F.avg_pool2d(part, SIDE // 4)
        parts.append(torch.cat([highest, -lowest, *(m.flatten(1) for m in (above, below, rough))], 1))
    return torch.cat(parts)


def _answers(views, target, rest, held_out):
    """The answers (k, classes) for the images held out, by ridge regression on all views (n, d) of others."""
    x, y = torch.cat([view[rest] for view in views]), target[rest].repeat(len(views), 1)
    mean = x.mean(0)
    x -= mean
    scale = (x.square().sum(0) / (len(x) - 1)).sqrt() + 1e-3
    x /= scale
    weight = y @ y.sum(0).clamp(min=1).rsqrt()[:, None]  # rare classes count more, as in the training
    weight /= weight.mean()
    middle = (weight * y).mean(0)
    gram = (weight * x).T @ x / len(x) + RIDGE * torch.eye(x.shape[1])
    solution = torch.linalg.solve(gram, (weight * x).T @ (y - middle) / len(x))
    return sum((view[held_out] - mean) / scale @ solution for view in views) / len(views) + middle
