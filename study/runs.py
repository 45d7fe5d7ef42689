"""Folds of the training split, and one training on them: what all studies are made of.

The test split is not looked at where folds are used: a part of the training split is held out in its place.
"""

import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

import torch

import train
from lab import intake, training
from lab.errors import InputError
from lab.findings import StudyData
from lab.groups import cut_folds
from lab.limits import LIMITS, Limits
from lab.machine import check_memory, choose_device, choose_precision, describe_machine, usable_cores
from lab.recipe import Recipe
from lab.record import Choices
from study.results import Run

# What a training fails with for its values: a loss that is not a number, a size that fits nowhere.
FAULTS = (ValueError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Where:
    """The images of a study, and where, how precisely and how many at once its trainings run.

    InputError where the device is not there, or lacks the precision.
    """

    data: str
    device: str = "auto"
    precision: str = "auto"
    limits: Limits = LIMITS
    jobs: int = 1
    choices: Choices | None = None

    def __post_init__(self):
        # Once for all runs: it may be tried, and each process would do so beside the others' work.
        precision = choose_precision(self.precision, choose_device(self.device))
        object.__setattr__(self, "precision", precision)

    @property
    def threads(self):
        """Of each of the runs at once, which share the cores."""
        return max(1, usable_cores() // self.jobs)

    def begin(self):
        """(torch.device, precision) of a run in this process, which takes its share of the cores."""
        if self.jobs > 1:  # alone, PyTorch's own choice stands, or OMP_NUM_THREADS
            torch.set_num_threads(self.threads)
        return choose_device(self.device), self.precision

    def machine(self):
        """The lab.record.Machine that the runs have."""
        machine = describe_machine(choose_device(self.device), self.precision)
        return replace(machine, threads=self.threads) if self.jobs > 1 else machine

    def about(self, recipe, folds=None, vit=False):
        """What every results file says: the machine, the runs at once, and the images of such a recipe.

        InputError where the images cannot be read, where their training split cannot be cut in `folds`, or
        where `vit` and its training does not fit in the memory.
        """
        images = intake.load_images(self.data, recipe, self.limits, self.choices)
        if folds:
            check_folds(images.train, folds)
        if vit:
            check_memory(recipe, *self.begin(), len(images.train), len(images.train.classes))
        data = StudyData(images.facts.fingerprint, images.facts.name, images.facts.classes)
        return {"machine": self.machine(), "jobs": self.jobs, "data": data}


_load_once = lru_cache(maxsize=2)(intake.load_images)


def cached_images(where, recipe):
    """The lab.intake.Images for such a recipe; a process that asks for the same again, for its next run, has
    them at once."""
    size = recipe.image_size
    # Only these values change pixels and split; one patch of the whole side divides any image.
    plain = Recipe(image_size=size, patch_size=size, channels=recipe.channels, split_seed=recipe.split_seed)
    return _load_once(where.data, plain, where.limits, where.choices)


def fit(where, recipe, free):
    """The recipe fitted to the images in those of its values whose names are in `free`."""
    if not free:
        return recipe
    return intake.load_images(where.data, recipe, where.limits, where.choices, free).fit.recipe


def check_folds(split, folds):
    """InputError where a training split cannot be cut: no class has so many different images."""
    different = Counter(label for label, _ in set(zip(split.labels.tolist(), split.digests)))
    ((label, most),) = different.most_common(1)
    if most < folds:
        raise InputError(
            f"class {split.classes[label]!r} has {most} different training images, and no class has more: "
            f"too few to cut in {folds} folds; add images"
        )


def fold_of(split, folds, number):
    """(the rest, the part held out) of fold `number` of a training split cut in `folds` parts.

    Classes are stratified; equal images stay together. A class of few images may lie in one part alone.
    """
    check_folds(split, folds)
    rest, held_out = next(islice(cut_folds(split.labels, split.digests, folds), number, None))
    return split.take(rest), split.take(held_out)


def reason_of(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


def prepare(split, held_out, recipe, device, precision, make_model=train.make_model, optimize=None):
    """lab.training.prepare for a network that fits in the memory. InputError where it does not.

    make_model: (recipe, classes) -> network; optimize: (network, recipe) -> [optimizer]; None: the ViT's.
    """
    classes = len(split.classes)
    if not optimize:  # what is known of memory is the ViT's
        # Before the weights are drawn: this draws some too, and would change what dropout draws after them.
        check_memory(recipe, device, precision, len(split), classes)
    model = make_model(recipe, classes).to(device)
    optimizers = optimize(model, recipe) if optimize else None
    how = {"model": model, "optimizers": optimizers}
    return training.prepare(split, held_out, recipe, device, precision, **how)


def train_and_score(train_split, held_out, recipe, where, make_model=train.make_model):
    """Train the recipe's ViT on one Split and score the other after the last epoch: a Run."""
    device, precision = where.begin()
    start = time.perf_counter()
    try:
        setup = prepare(train_split, held_out, recipe, device, precision, make_model)
        *_, last = training.epochs(setup, recipe)
    except FAULTS as error:
        return Run(failed=reason_of(error))
    seconds = time.perf_counter() - start
    return Run(**scores_of(last, held_out), seconds=seconds, precision=precision)


def scores_of(epoch, held_out):
    """What a Run says of a train.Epoch."""
    return {
        "errors": len(held_out) - epoch.correct,
        "images": len(held_out),
        "loss": epoch.test_loss,
        "train_loss": epoch.train_loss,
    }


def score_fold(where, recipe, folds, number, make_model=train.make_model):
    """Train on all of so many folds but fold `number`, and score that one: a Run."""
    split = cached_images(where, recipe).train
    return train_and_score(*fold_of(split, folds, number), recipe, where, make_model)
