"""The ViT beside two convolutional networks: accuracy, size and speed, on all or few training images.

What is equal: images, 70/30 split, augmentation, mixup, order of the batches, epochs, learning-rate
schedule, label smoothing, clipping, precision, the views that are averaged at the end, and that weights
start at random. What is not: the ViT has the optimizer of its recipe, by default Muon and AdamW; the
CNNs have AdamW with the recipe's learning_rate and weight_decay, as Muon is for matrices and a convolution
is not one. The recipe was tuned for the ViT, on validation folds of the same images; nothing was tuned
for the CNNs. The test split selects nothing: the score is the last epoch's.

A share of the training split is drawn class by class with the run's seed, the same for all networks,
and a smaller share lies within a larger one. The number of epochs is the same for all shares and
networks: each image is seen equally often, so the steps shrink with the images.
"""

import dataclasses
import random
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from lab.errors import InputError
from lab.findings import Comparison, ComparisonRow
from study import figures
from study.results import Results, Run, Value, run_study

NETWORKS = ("vit", "cnn", "resnet18")  # in the order of tables; study.cnn.MAKERS makes them
SIZES = ("train_images", "parameters", "mult_adds")  # the same for all seeds
SPEEDS = ("train_rate", "inference_rate")  # of which a table has the means


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
    """A network trained on a share (percent) of the training split. Seconds are those of training alone."""

    model: str
    share: int
    seed: int
    threads: int
    train_images: int | None = None
    parameters: int | None = None
    mult_adds: int | None = None
    train_rate: float | None = None
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
    rows: dict[str, ComparisonRun] = field(default_factory=dict)


def share_of(split, percent, seed):
    """A data.Split of `percent` of each class of a split, rounded, at least one image a class.

    The class's images are shuffled by the seed and the first ones taken, so a smaller share of the
    same seed lies within a larger one. They keep their order; 100 % is the split itself.
    """
    rows = []
    for number in split.labels.unique().tolist():
        members = (split.labels == number).nonzero().flatten().tolist()
        wanted = max(1, (len(members) * percent + 50) // 100)
        random.Random(f"{seed} {number}").shuffle(members)
        rows += sorted(members[:wanted])
    return split.take(rows)


def run_one(where, recipe, name, share):
    """Train the network called `name` on a share of the training split, scoring the test split after each
    epoch: a ComparisonRun."""
    from lab import training
    from study import cnn, runs  # imports PyTorch

    about = {"model": name, "share": share, "seed": recipe.seed, "threads": where.threads}
    images, (device, precision) = runs.cached_images(where, recipe), where.begin()
    split, test = share_of(images.train, share, recipe.seed), images.test
    optimize = None if name == "vit" else cnn.make_cnn_optimizers
    seconds, history = 0.0, []
    try:
        setup = runs.prepare(split, test, recipe, device, precision, cnn.MAKERS[name], optimize)
        for epoch in training.epochs(setup, recipe):
            seconds += epoch.train_seconds
            losses = round(epoch.train_loss, 6), round(epoch.test_loss, 6)
            history.append(Moment(epoch.number, round(seconds, 3), *losses, epoch.correct / len(test)))
    except runs.FAULTS as error:
        return ComparisonRun(**about, failed=runs.reason_of(error))
    shape = (recipe.channels, recipe.image_size, recipe.image_size)
    return ComparisonRun(
        **about,
        **runs.scores_of(epoch, test),
        train_images=len(split),
        parameters=sum(p.numel() for p in setup.model.parameters()),
        mult_adds=cnn.count_mult_adds(setup.model, shape),
        seconds=seconds,
        train_rate=len(split) * recipe.epochs / seconds,
        inference_rate=cnn.inference_rate(setup.model, shape, precision),
        precision=precision,
        history=history,
    )


def compare(where, recipe, seeds, shares, networks, output, say=print):
    """Run what the file `output` lacks of all networks, and say how they compare -> Comparison."""
    for name in networks:
        if name not in NETWORKS:
            raise InputError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}")
    for share in shares:
        if not 1 <= share <= 100:
            raise InputError(f"a share must be from 1 to 100 (percent), not {share}")
    recipes = [dataclasses.replace(recipe, seed=seed) for seed in seeds]
    own = {key: value for key, value in recipe.as_dict().items() if key != "seed"}
    about = ComparisonResults(**where.about(recipe, vit="vit" in networks), recipe=own)
    work = {
        f"{name} | {share} % | seed {recipe.seed}": partial(run_one, where, recipe, name, share)
        for recipe in recipes
        for share in shares
        for name in networks
    }
    found = summary(run_study(work, output, about, say))
    say("\n".join(["", *table_of(found)]))
    return dataclasses.replace(found, fresh=True, file=output.name)


def accuracy_within(history, seconds):
    """The accuracy after the last epoch that ended within so many seconds of training; None before the
    first. In mid-schedule the learning rate is still high, so a shorter schedule would do better."""
    return next((moment.accuracy for moment in reversed(history) if moment.seconds <= seconds), None)


def summary(results):
    """ComparisonResults -> lab.findings.Comparison, largest share first.

    Figures are means over the seeds. Of networks beside the ViT, over the seeds that both have: the accuracy
    reached in the ViT's seconds of training, and the paired difference, ViT minus network. The noise is
    that of training; another split would add its own. Failed runs count in `failed` alone.
    """
    groups = figures.grouped(results.rows.values(), ("share", "model"), "seed")
    table = []
    for share, name in sorted(groups, key=lambda key: (-key[0], NETWORKS.index(key[1]))):
        runs = figures.whole(groups[share, name])
        vit = {} if name == "vit" else groups.get((share, "vit"), {})
        pairs = figures.pairs_of(vit, groups[share, name])
        difference = vars(figures.paired(pairs))
        if not pairs:
            difference = difference | {"within_noise": None}  # there is nothing to compare with
        table.append(
            ComparisonRow(
                model=name,
                share=share,
                **figures.of(groups[share, name]),
                **{size: getattr(runs[0], size) if runs else None for size in SIZES},
                **{speed: figures.mean(getattr(run, speed) for run in runs) for speed in SPEEDS},
                at_vit_seconds=figures.mean(accuracy_within(b.history, a.seconds) for a, b in pairs),
                pairs=len(pairs),
                **difference,
            )
        )
    return Comparison(recipe=results.recipe, rows=table, **results.origin)


def table_of(comparison):
    """A Comparison as lines for the terminal: the table and the differences, accuracies in %."""
    table = [["model", "share", *figures.CELLS, "parameters", "M mult-adds", "images/s", "in ViT s"]]
    paired_table = [["model", "share", "seeds", "difference", "from", "to (95 %)", ""]]
    for row in comparison.rows:
        network = [row.model, f"{row.share} %"]
        size = figures.shown(row.parameters, ","), figures.shown(row.mult_adds, ".1f", 1e-6)
        speed = figures.shown(row.inference_rate, ".0f"), figures.shown(row.at_vit_seconds, ".2f", 100)
        table.append([*network, *figures.cells(**vars(row)), *size, *speed])
        if row.pairs:
            paired_table.append([*network, str(row.pairs), *figures.difference_cells(row)])
    yield from figures.aligned(table)
    yield "seconds: of training; images/s: inference; in ViT s: accuracy reached in the seconds of the ViT"
    if len(paired_table) > 1:
        yield "\nViT minus the other, accuracy in percentage points, over the seeds that both have"
        yield from figures.aligned(paired_table)
