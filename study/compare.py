"""The ViT beside two convolutional networks: accuracy, size and speed, on all or few training images.

What is equal: images, 70/30 split, augmentation, order of the batches, learning-rate schedule, label
smoothing, clipping, precision, the views that are averaged at the end, and that weights start at random;
then, as asked for, the *steps* of all networks or their *time*: as many epochs as take as long as the ViT's
steps, by steps timed one after the other in the same process. Smaller shares of the training split are
shown more often, so that all shares have the same number of steps.

Each network has its own peak learning rate and mixup: the best of GRID on a validation part of a quarter of
the training split, in the time of the ViT (`tune`). What is not equal: the ViT has the optimizer of its
recipe, by default Muon and AdamW; the CNNs have AdamW, as Muon is for matrices and a convolution is not
one. All other values of the recipe were found for the ViT. The test split selects nothing: the score is the
last epoch's.

A share of the training split is drawn class by class with the run's seed, the same for all networks,
and a smaller share lies within a larger one.
"""

import dataclasses
import random
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from lab.errors import InputError
from lab.findings import Comparison, ComparisonRow
from study import means
from study.results import Results, Run, Value, run_study, without_seed

NETWORKS = ("vit", "cnn", "resnet18")  # in the order of tables; study.cnn.MAKERS makes them
SIZES = ("train_images", "parameters", "mult_adds")  # the same for all seeds
MEANS = ("epochs", "inference_rate")  # of which a table has the means
EQUALS = ("steps", "time")
# Tried for each network: multiples of the recipe's peak learning rate, and mixup.
GRID = [(rate, mixup) for rate in (1 / 3, 1, 3) for mixup in (0.0, 0.4)]
TUNED_SHARE, TUNED_FOLDS = 25, 4  # percent of the training images that it is tuned on, and its parts


@dataclass(frozen=True)
class Moment:
    """The end of an epoch: seconds of training so far, losses, and the accuracy on the test images (one
    view of each; in the last epoch all views)."""

    epoch: int
    seconds: float
    train_loss: float
    test_loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class ComparisonRun(Run):
    """A network trained on a share (percent) of the training split. Seconds are those of training alone.

    `values`: what is tried in a tuning, which scores a validation part of the training split.
    """

    model: str
    share: float
    seed: int
    threads: int
    equal: str
    values: dict[str, Value] | None = None
    epochs: int | None = None
    train_images: int | None = None
    parameters: int | None = None
    mult_adds: int | None = None
    inference_rate: float | None = None
    history: list[Moment] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ComparisonResults(Results):
    command: ClassVar[str] = "python -m study compare"
    what: str = (
        "ViT and CNNs trained alike on shares of the training split; "
        "the last epoch's score on the test split, which selects nothing"
    )
    recipe: dict[str, Value]  # without the seed
    tuned: dict[str, dict[str, Value]] = field(default_factory=dict)  # what a network has of its own
    rows: dict[str, ComparisonRun] = field(default_factory=dict)


def share_of(split, percent, seed):
    """A data.Split of `percent` of each class of a split, rounded, at least one image a class.

    The class's images are shuffled by the seed and the first ones taken, so a smaller share of the
    same seed lies within a larger one. They keep their order; 100 % is the split itself.
    """
    rows = []
    for number in split.labels.unique().tolist():
        members = (split.labels == number).nonzero().flatten().tolist()
        wanted = max(1, int(len(members) * percent + 50) // 100)
        random.Random(f"{seed} {number}").shuffle(members)
        rows += sorted(members[:wanted])
    return split.take(rows)


@dataclass(frozen=True, kw_only=True)
class TuningResults(ComparisonResults):
    what: str = "learning rate and mixup of each network, errors on a validation part of the training split"


def check(networks, shares):
    """InputError for a network that there is not, or a share out of range."""
    for name in networks:
        if name not in NETWORKS:
            raise InputError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}")
    for share in shares:
        if not 0 < share <= 100:
            raise InputError(f"a share must be above 0, to 100 (percent), not {share:g}")


def values_of(name, recipe, rate, mixup):
    """{hyperparameter: value} that a network of this name is tried with."""
    peak = "muon_learning_rate" if name == "vit" and recipe.muon_learning_rate else "learning_rate"
    return {peak: float(f"{rate * getattr(recipe, peak):.2g}"), "mixup": mixup}


def with_steps_of(recipe, whole, part):
    """The recipe for a part of so many images with the steps that it has on the whole."""
    return dataclasses.replace(recipe, repeats=recipe.repeats * max(1, round(whole / part)))


def seconds_a_step(setup, recipe, times=4):
    """The seconds of a training step of a Setup, the fastest of a few, which train it."""
    from lab import training

    training.record_passes(setup, recipe)  # as the training itself
    batch = next(iter(setup.train_loader))
    return min(training.seconds_of_step(setup, batch, recipe) for _ in range(times))


def prepare(where, split, held_out, recipe, name):
    """The training.Setup of the network `name`, with the optimizer of its kind."""
    from study import cnn, runs

    optimize = None if name == "vit" else cnn.make_cnn_optimizers
    return runs.prepare(split, held_out, recipe, *where.begin(), cnn.MAKERS[name], optimize)


def in_the_time_of_the_vit(recipe, prepare, name):
    """The recipe with as many epochs as the network `name` makes in the time of the ViT's.

    prepare: (recipe, name) -> training.Setup. Both are timed here, one after the other.
    """
    if name == "vit":
        return recipe
    vit, other = (seconds_a_step(prepare(recipe, network), recipe) for network in ("vit", name))
    return dataclasses.replace(recipe, epochs=max(1, round(recipe.epochs * vit / other)))


def train_network(where, split, held_out, recipe, name, equal):
    """Train the network `name` on a split, for the recipe's steps or in the ViT's time, and score the images
    held out after each epoch -> (training.Setup, the last train.Epoch, [Moment])."""
    from lab import training

    make, seconds, history = partial(prepare, where, split, held_out), 0.0, []
    if equal == "time":
        recipe = in_the_time_of_the_vit(recipe, make, name)
    setup = make(recipe, name)
    for epoch in training.epochs(setup, recipe):
        seconds += epoch.train_seconds
        losses = round(epoch.train_loss, 6), round(epoch.test_loss, 6)
        history.append(Moment(epoch.number, round(seconds, 3), *losses, epoch.correct / len(held_out)))
    return setup, epoch, history


def tune(where, recipe, networks, output, say=print):
    """Try GRID for each network, in the time of the ViT -> {network: its best values}, of all in `output`."""
    about = where.about(recipe, vit="vit" in networks)
    about = TuningResults(**about, recipe=without_seed(recipe))
    work = {}
    for name in networks:
        for rate, mixup in GRID:
            values = values_of(name, recipe, rate, mixup)
            key = f"{name} | " + ", ".join(f"{key} {value:g}" for key, value in values.items())
            work[key] = partial(run_one, where, recipe, name, TUNED_SHARE, "time", values)
    rows = [row for row in run_study(work, output, about, say).rows.values() if not row.failed]
    best = {}  # also of networks that an earlier call tuned
    for row in sorted(rows, key=lambda row: (row.errors, row.loss)):
        best.setdefault(row.model, row.values)
    return best


def run_one(where, recipe, name, share, equal="steps", values=None):
    """Train the network called `name` on a share of the training split, scoring the test split after each
    epoch: a ComparisonRun. With `values`, a tuning's: on a share of one part, scoring the rest."""
    from study import cnn, runs  # imports PyTorch

    about = {"model": name, "share": share, "seed": recipe.seed, "threads": where.threads}
    about |= {"equal": equal, "values": values}
    images = runs.cached_images(where, recipe)
    whole, test = images.train, images.test
    if values:
        whole, test = runs.fold_of(images.train, TUNED_FOLDS, 0)
    split = share_of(whole, share, recipe.seed)
    recipe = dataclasses.replace(with_steps_of(recipe, len(whole), len(split)), **values or {})
    try:
        setup, epoch, history = train_network(where, split, test, recipe, name, equal)
    except runs.FAULTS as error:
        return ComparisonRun(**about, failed=runs.reason_of(error))
    shape = (recipe.channels, recipe.image_size, recipe.image_size)
    return ComparisonRun(
        **about,
        **runs.scores_of(epoch, test),
        epochs=epoch.number,
        train_images=len(split),
        parameters=sum(p.numel() for p in setup.model.parameters()),
        mult_adds=cnn.count_mult_adds(setup.model, shape),
        seconds=history[-1].seconds,
        inference_rate=cnn.inference_rate(setup.model, shape, setup.precision),
        precision=setup.precision,
        history=history,
    )


def compare(where, recipe, seeds, shares, networks, output, say=print, *, equals=("steps",), tuned=None):
    """Run what the file `output` lacks of all networks, and say how they compare -> Comparison.

    tuned: {network: {hyperparameter: value}} in place of the recipe's, as `tune` finds them.
    """
    recipes = [dataclasses.replace(recipe, seed=seed) for seed in seeds]
    about, tuned = where.about(recipe, vit="vit" in networks), tuned or {}
    about = ComparisonResults(**about, recipe=without_seed(recipe), tuned=tuned)
    work = {
        f"{name} | {share:g} % | equal {equal} | seed {recipe.seed}": partial(
            run_one, where, dataclasses.replace(recipe, **tuned.get(name, {})), name, share, equal
        )
        for recipe in recipes
        for share in shares
        for equal in equals
        for name in networks
        if name != "vit" or equal == equals[0]  # its own time and steps
    }
    found = summary(run_study(work, output, about, say))
    say("\n".join(["", *table_of(found)]))
    return dataclasses.replace(found, fresh=True, file=output.name)


def summary(results):
    """ComparisonResults -> lab.findings.Comparison, largest share first.

    Figures are means over the seeds. Of networks beside the ViT, over the seeds that both have: the paired
    difference, ViT minus network. The noise is that of training and of the share's images; another split
    would add its own. Failed runs count in `failed` alone.
    """
    groups = means.grouped(results.rows.values(), ("share", "equal", "model"), "seed")
    vits = {share: group for (share, _, name), group in groups.items() if name == "vit"}
    table = []
    order = sorted(groups, key=lambda key: (-key[0], EQUALS.index(key[1]), NETWORKS.index(key[2])))
    for share, equal, name in order:
        group = groups[share, equal, name]
        runs, vit = means.whole(group), {} if name == "vit" else vits.get(share, {})
        pairs = means.pairs_of(vit, group)
        difference = means.paired(pairs)
        if not pairs:  # there is nothing to compare with
            difference["within_noise"] = None
        table.append(
            ComparisonRow(
                model=name,
                share=share,
                equal=equal,
                **means.of(group),
                **{size: getattr(runs[0], size) if runs else None for size in SIZES},
                **{name: means.mean(getattr(run, name) for run in runs) for name in MEANS},
                pairs=len(pairs),
                **difference,
            )
        )
    return Comparison(recipe=results.recipe, tuned=results.tuned, rows=table, **results.origin)


def table_of(comparison):
    """A Comparison as lines for the terminal: the table and the differences, accuracies in %."""
    table = [["model", "share", "equal", *means.CELLS, "parameters", "M mult-adds", "images/s"]]
    paired_table = [["model", "share", "equal", "seeds", "difference", "from", "to (95 %)", ""]]
    for row in comparison.rows:
        network = [row.model, f"{row.share:g} %", row.equal]
        size = means.shown(row.parameters, ","), means.shown(row.mult_adds, ".1f", 1e-6)
        speed = means.shown(row.inference_rate, ".0f")
        table.append([*network, *means.cells(**vars(row)), *size, speed])
        if row.pairs:
            paired_table.append([*network, str(row.pairs), *means.difference_cells(row)])
    yield from means.aligned(table)
    yield "seconds: of training; images/s: inference; equal: to the ViT in steps or in time"
    if len(paired_table) > 1:
        yield "\nViT minus the other, accuracy in percentage points, over the seeds that both have"
        yield from means.aligned(paired_table)
