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
import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from lab.errors import InputError
from lab.findings import Comparison, ComparisonRow
from study.noise import deviation, mean, paired, shown
from study.results import Results, Run, Value, check_folder, run_study

NETWORKS = ("vit", "cnn", "resnet18")  # in the order of tables; study.cnn.MAKERS makes them
SIZES = ("train_images", "parameters", "mult_adds")  # the same for all seeds
SPEEDS = ("seconds", "train_rate", "inference_rate")  # of which a table has the means


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
    accuracy: float | None = None
    train_images: int | None = None
    parameters: int | None = None
    mult_adds: int | None = None
    train_rate: float | None = None
    inference_rate: float | None = None
    history: list[Moment] = field(default_factory=list)

    @property
    def told(self):
        return self.failed or f"{self.accuracy:.2%} in {self.seconds:.0f} s"


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
    from study.runs import part_of

    rows = []
    for number in split.labels.unique().tolist():
        members = (split.labels == number).nonzero().flatten().tolist()
        wanted = max(1, (len(members) * percent + 50) // 100)
        random.Random(f"{seed} {number}").shuffle(members)
        rows += sorted(members[:wanted])
    return part_of(split, rows)


def count_mult_adds(model, image_shape):
    """Multiply-adds of one image (channels, height, width) through the model: half of what PyTorch's
    FlopCounterMode counts, which is all matrix products, attention's too, and all convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    image = torch.zeros(1, *image_shape, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2


def inference_rate(model, image_shape, precision, batch_size=64, repeats=7):
    """Images a second through the model, one view each: the median over `repeats` batches."""
    import torch

    from lab.training import DTYPES

    device, dtype = next(model.parameters()).device, DTYPES[precision]
    batch = torch.randn(batch_size, *image_shape, device=device)
    model.eval()
    seconds = []
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            model(batch).sum().item()  # item() waits for a GPU
            seconds.append(time.perf_counter() - start)
    return batch_size / statistics.median(seconds[1:])  # the first is slower than all others


def run_one(where, recipe, name, share):
    """Train the network called `name` on a share of the training split: a ComparisonRun."""
    from study import runs  # imports PyTorch

    device, precision = where.begin()
    about = {"model": name, "share": share, "seed": recipe.seed, "threads": where.threads}
    images = runs.cached_images(where, recipe)
    part = share_of(images.train, share, recipe.seed)
    try:
        return ComparisonRun(**about, **_measured(name, part, images.test, recipe, device, precision))
    except runs.FAULTS as error:
        return ComparisonRun(**about, failed=runs.reason_of(error))


def _measured(name, split, test, recipe, device, precision):
    """Train a network, scoring `test` after each epoch: what a ComparisonRun says of it."""
    from lab import training
    from study import cnn, runs

    optimize = None if name == "vit" else cnn.make_cnn_optimizers
    setup = runs.prepare(split, test, recipe, device, precision, cnn.MAKERS[name], optimize)
    seconds, history = 0.0, []
    for epoch in training.epochs(setup, recipe):
        seconds += epoch.train_seconds
        losses = round(epoch.train_loss, 6), round(epoch.test_loss, 6)
        history.append(Moment(epoch.number, round(seconds, 3), *losses, epoch.correct / len(test)))
    shape = (recipe.channels, recipe.image_size, recipe.image_size)
    return {
        "accuracy": epoch.correct / len(test),
        "errors": len(test) - epoch.correct,
        "images": len(test),
        "loss": epoch.test_loss,
        "train_loss": epoch.train_loss,
        "train_images": len(split),
        "parameters": sum(p.numel() for p in setup.model.parameters()),
        "mult_adds": count_mult_adds(setup.model, shape),
        "seconds": seconds,
        "train_rate": len(split) * recipe.epochs / seconds,
        "inference_rate": inference_rate(setup.model, shape, precision),
        "precision": precision,
        "history": history,
    }


def compare(where, recipe, seeds, shares, networks, output, say=print):
    """Run what the file `output` lacks of all networks, and say how they compare -> Comparison."""
    from lab.machine import check_memory
    from study import runs

    for name in networks:
        if name not in NETWORKS:
            raise InputError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}")
    for share in shares:
        if not 1 <= share <= 100:
            raise InputError(f"a share must be from 1 to 100 (percent), not {share}")
    recipes = [dataclasses.replace(recipe, seed=seed) for seed in seeds]
    check_folder(output)
    images = runs.load_images(where, recipe)
    if "vit" in networks:
        check_memory(recipe, *where.begin(), len(images.train), len(images.train.classes))
    own = {key: value for key, value in recipe.as_dict().items() if key != "seed"}
    about = ComparisonResults(**where.about(images.facts), recipe=own)
    work = {
        f"{name} | {share} % | seed {recipe.seed}": partial(run_one, where, recipe, name, share)
        for recipe in recipes
        for share in shares
        for name in networks
    }
    found = summary(run_study(work, output, about, say))
    say("\n".join(table_of(found)))
    return found


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
    groups = {}
    for row in results.rows.values():
        groups.setdefault((row.share, row.model), {})[row.seed] = row
    whole = {key: {s: r for s, r in rows.items() if not r.failed} for key, rows in groups.items()}
    table = []
    for share, name in sorted(groups, key=lambda key: (-key[0], NETWORKS.index(key[1]))):
        of_seed, vit = whole[share, name], whole.get((share, "vit"), {})
        runs = list(of_seed.values())
        pairs = [(vit[seed], of_seed[seed]) for seed in of_seed if seed in vit and name != "vit"]
        difference = vars(paired([a.accuracy - b.accuracy for a, b in pairs]))
        if not pairs:
            difference = difference | {"within_noise": None}  # there is nothing to compare with
        table.append(
            ComparisonRow(
                model=name,
                share=share,
                runs=len(runs),
                failed=len(groups[share, name]) - len(runs),
                accuracy=mean(run.accuracy for run in runs),
                sd=deviation([run.accuracy for run in runs]),
                **{name: getattr(runs[0], name) if runs else None for name in SIZES},
                **{name: mean(getattr(run, name) for run in runs) for name in SPEEDS},
                at_vit_seconds=mean(accuracy_within(b.history, a.seconds) for a, b in pairs),
                pairs=len(pairs),
                **difference,
            )
        )
    return Comparison(recipe=results.recipe, rows=table, **results.origin)


def table_of(comparison):
    """A Comparison as lines for the terminal: the table and the differences, accuracies in %."""
    rows = comparison.rows
    yield (
        f"\n{'model':9} {'share':>6} {'runs':>4} {'accuracy':>9} {'sd':>5} {'parameters':>11} "
        f"{'M mult-adds':>11} {'s train':>8} {'images/s':>8} {'in ViT s':>8}"
    )
    for row in rows:
        yield (
            f"{row.model:9} {row.share:4} % {row.runs:4} {shown(row.accuracy, '9.2f', 100):>9} "
            f"{shown(row.sd, '5.2f', 100):>5} {shown(row.parameters, ','):>11} "
            f"{shown(row.mult_adds, '.1f', 1e-6):>11} {shown(row.seconds, '.0f'):>8} "
            f"{shown(row.inference_rate, '.0f'):>8} {shown(row.at_vit_seconds, '.2f', 100):>8}"
            + (f"  {row.failed} failed" if row.failed else "")
        )
    yield "images/s: inference; in ViT s: accuracy reached in the ViT's seconds of training"
    compared = [row for row in rows if row.pairs]
    if compared:
        yield "\nViT minus the other, accuracy in percentage points, over the seeds that both have"
    for row in compared:
        yield (
            f"{row.model:9} {row.share:4} % {row.pairs:4} {100 * row.difference:+9.2f} "
            f"(95 %: {shown(row.low, '+.2f', 100)} to {shown(row.high, '+.2f', 100)})"
            + ("  within noise" if row.within_noise else "")
        )
