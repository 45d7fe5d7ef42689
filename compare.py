#!/usr/bin/env python3
"""The ViT beside two convolutional networks: accuracy, size and speed, on all or few training images.

    python compare.py --data dataset.zip --output studies/compare.json --seeds 0 1 2 --shares 10 25 50 100

  vit       the recipe's Vision Transformer (vit.py)
  cnn       a residual CNN written out below, of about the default ViT's parameters and multiply-adds
  resnet18  torchvision's ResNet-18, its first convolution for the recipe's channels

All start from random weights: pretrained ones have to be downloaded, and this project works
without a network, so what pretraining would change is not measured here.

What is equal: images, 70/30 split, augmentation, mixup, order of the batches, epochs, learning-rate
schedule, label smoothing, clipping, precision, and the views that are averaged at the end. What is
not: the ViT has the optimizer of its recipe, by default Muon and AdamW; the CNNs have AdamW with the
recipe's learning_rate and weight_decay, as Muon is for matrices and a convolution is none. The recipe
was tuned for the ViT, on validation folds of the same images; nothing was tuned for the CNNs.

A share of the training split is drawn class by class with the run's seed, the same for all networks,
and a smaller share lies within a larger one. The number of epochs is the same for all shares and
networks: each image is seen equally often, so the steps shrink with the images. The test split
selects nothing: the score is the last epoch's. Results are kept as they come; the command goes on
where it stopped.
"""

import argparse
import json
import random
import statistics
import sys
import time

import torch
from torch import nn

import data
import train
from diary import paired
from machine import check_memory
from recipe import InputError, load_recipe
from tune import (
    add_run_arguments,
    cached_images,
    describe_source,
    load_images,
    run_all,
    say_at_once,
    share_cores,
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions added to their input: figure 2 of He et al. 2016, with option B for the
    shortcut where the shape changes. (b, width_in, h, w) -> (b, width, h / stride, w / stride)."""

    def __init__(self, width_in, width, stride):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and width_in == width
            else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x):
        return (self.residual(x) + self.shortcut(x)).relu()


class CNN(nn.Module):
    """A small residual network: images (b, channels, height, width) -> logits (b, num_classes).

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385, table 1: ResNet-18 at a quarter of its width. Two more blocks in
    the third stage bring it to the default ViT's 0.86 M parameters, and near its multiply-adds.
    """

    def __init__(self, *, num_classes, channels=1, widths=(16, 32, 64, 128), blocks=(2, 2, 4, 2)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages, width_in = [], widths[0]
        for width, count in zip(widths, blocks):
            for i in range(count):
                stride = 2 if i == 0 and width != widths[0] else 1  # each stage but the first halves
                stages.append(BasicBlock(width_in, width, stride))
                width_in = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, arXiv:1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, img):
        return self.head(self.stages(self.stem(img)).mean((-2, -1)))


def make_cnn(recipe, num_classes):
    """The CNN for a recipe's images, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return CNN(num_classes=num_classes, channels=recipe.channels)


def make_resnet18(recipe, num_classes):
    """torchvision's ResNet-18 for a recipe's images, its weights drawn from the recipe's seed."""
    from torchvision.models import resnet18

    torch.manual_seed(recipe.seed)
    model = resnet18(weights=None, num_classes=num_classes)
    if recipe.channels != 3:
        model.conv1 = nn.Conv2d(recipe.channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


MODELS = {"vit": train.make_model, "cnn": make_cnn, "resnet18": make_resnet18}


def make_cnn_optimizer(model, recipe):
    """AdamW at the recipe's learning_rate; its weight_decay acts on convolutions and linear layers
    alone, not on norms and biases."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": weights}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=vectors[0].device.type in ("cpu", "cuda"),
    )


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
    index = torch.tensor(rows)
    return data.Split(split.images[index], split.labels[index], [split.files[row] for row in rows])


def count_mult_adds(model, image_shape):
    """Multiply-adds of one image (channels, height, width) through the model: half of what PyTorch's
    FlopCounterMode counts, which is all matrix products, attention's too, and all convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    image = torch.zeros(1, *image_shape, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2


def inference_rate(model, image_shape, precision, batch_size=64, repeats=7):
    """Images a second through the model, one view each: the median over `repeats` batches."""
    device = next(model.parameters()).device
    batch = torch.randn(batch_size, *image_shape, device=device)
    model.eval()
    seconds = []
    with torch.no_grad(), train.autocast(device, precision):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            model(batch).sum().item()  # item() waits for a GPU
            seconds.append(time.perf_counter() - start)
    return batch_size / statistics.median(seconds[1:])  # the first is slower than all others


def one_run(source, recipe, name, share, threads):
    """Train the network called `name` on a share (percent) of the training split: a JSON-ready row.

    A run that fails for its values (a loss that is no number, images too small) gives a row with
    "failed" in place of the figures.
    """
    torch.set_num_threads(threads)
    device = train.choose_device()
    precision = train.choose_precision("auto", device)
    images = cached_images(source, recipe)
    images = images._replace(train=share_of(images.train, share, recipe.seed))
    row = {"model": name, "share": share, "seed": recipe.seed, "threads": threads}
    try:
        return row | train_one(images, recipe, name, device, precision)
    except (InputError, ValueError, RuntimeError) as error:
        return row | {"failed": f"{type(error).__name__}: {error}"}


def train_one(images, recipe, name, device, precision):
    """Train and measure one network on images.train: a JSON-ready dict.

    Seconds are those of training, without the scoring. `history` has an entry an epoch: seconds so
    far, losses, and the accuracy on the test images (one view each, but the last with all views).
    """
    # Convolutions are 1.2 to 1.4 times as fast in this layout; a ViT has none and stays as it is.
    layout = torch.preserve_format if name == "vit" else torch.channels_last
    model = MODELS[name](recipe, len(images.classes)).to(device, memory_format=layout)
    optimizer = None if name == "vit" else make_cnn_optimizer(model, recipe)
    loaders = data.make_loaders(images, recipe, device)
    seconds, history = 0.0, []
    for row in train.fit(
        model, *loaders, recipe, optimizer=optimizer, precision=precision, log=lambda line: None
    ):
        seconds += row["train_seconds"]
        history.append(
            {
                "epoch": row["epoch"],
                "seconds": round(seconds, 3),
                "train_loss": round(row["train_loss"], 6),
                "test_loss": round(row["test_loss"], 6),
                "accuracy": row["test_accuracy"],
            }
        )
    shape, total = (recipe.channels, recipe.image_size, recipe.image_size), len(images.test.files)
    return {
        "accuracy": row["test_accuracy"],
        "errors": total - round(row["test_accuracy"] * total),
        "images": total,
        "loss": row["test_loss"],
        "train_loss": row["train_loss"],
        "train_images": len(images.train.files),
        "parameters": sum(p.numel() for p in model.parameters()),
        "mult_adds": count_mult_adds(model, shape),
        "seconds": seconds,
        "train_rate": len(images.train.files) * recipe.epochs / seconds,
        "inference_rate": inference_rate(model, shape, precision),
        "precision": precision,
        "history": history,
    }


def accuracy_within(history, seconds):
    """The accuracy after the last epoch that ended within so many seconds of training; None before the
    first. In mid-schedule the learning rate is still high, so a shorter schedule would do better."""
    return next((row["accuracy"] for row in reversed(history) if row["seconds"] <= seconds), None)


def mean(values):
    values = [value for value in values if value is not None]
    return statistics.mean(values) if values else None


def summary(record):
    """A comparison for the report, JSON-ready: its recipe, data, machine, date, and in `rows` one for each
    share and network, largest share first.

    Means over the seeds of accuracy (0 to 1), seconds of training, and images a second in training
    (train_rate) and inference (inference_rate); `sd` is the sample standard deviation of the
    accuracy. Of networks beside the ViT, over the seeds that both have: `at_vit_seconds`, the
    accuracy reached in the ViT's seconds of training, and what diary.paired says of ViT minus network.
    The noise is that of training; another split would add its own. A figure that can't be had is None.
    Failed runs count in `failed` alone.
    """
    groups = {}
    for row in record["rows"].values():
        groups.setdefault((row["share"], row["model"]), {})[row["seed"]] = row
    order = sorted(groups, key=lambda key: (-key[0], list(MODELS).index(key[1])))
    whole = {key: {s: r for s, r in groups[key].items() if "failed" not in r} for key in order}
    table = []
    for share, name in order:
        of_seed, vit = whole[share, name], whole.get((share, "vit"), {})
        runs = list(of_seed.values())
        pairs = [(vit[seed], of_seed[seed]) for seed in of_seed if seed in vit and name != "vit"]
        differences = [a["accuracy"] - b["accuracy"] for a, b in pairs]
        table.append(
            {
                "model": name,
                "share": share,
                "runs": len(runs),
                "failed": len(groups[share, name]) - len(runs),
                "train_images": runs[0]["train_images"] if runs else None,
                "accuracy": mean(row["accuracy"] for row in runs),
                "sd": statistics.stdev(row["accuracy"] for row in runs) if len(runs) > 1 else None,
                "parameters": runs[0]["parameters"] if runs else None,
                "mult_adds": runs[0]["mult_adds"] if runs else None,
                "seconds": mean(row["seconds"] for row in runs),
                "train_rate": mean(row["train_rate"] for row in runs),
                "inference_rate": mean(row["inference_rate"] for row in runs),
                "at_vit_seconds": mean(accuracy_within(b["history"], a["seconds"]) for a, b in pairs),
                "pairs": len(pairs),
                **paired(differences),
                **({} if pairs else {"within_noise": None}),  # there is nothing to compare with
            }
        )
    return {
        "recipe": record["recipe"],
        "data": record["data"],
        "machine": record["machine"],
        "date": max(row["date"] for row in record["rows"].values()),
        "rows": table,
    }


def shown(value, form, scale=1):
    return "-" if value is None else format(value * scale, form)


def table_of(summary):
    """The summary as lines for the terminal: the table and the differences, accuracies in %."""
    rows = summary["rows"]
    yield (
        f"\n{'model':9} {'share':>6} {'runs':>4} {'accuracy':>9} {'sd':>5} {'parameters':>11} "
        f"{'M mult-adds':>11} {'s train':>8} {'images/s':>8} {'in ViT s':>8}"
    )
    for row in rows:
        yield (
            f"{row['model']:9} {row['share']:4} % {row['runs']:4} {shown(row['accuracy'], '9.2f', 100):>9} "
            f"{shown(row['sd'], '5.2f', 100):>5} {shown(row['parameters'], ','):>11} "
            f"{shown(row['mult_adds'], '.1f', 1e-6):>11} {shown(row['seconds'], '.0f'):>8} "
            f"{shown(row['inference_rate'], '.0f'):>8} {shown(row['at_vit_seconds'], '.2f', 100):>8}"
            + (f"  {row['failed']} failed" if row["failed"] else "")
        )
    yield "images/s: inference; in ViT s: accuracy reached in the ViT's seconds of training"
    compared = [row for row in rows if row["pairs"]]
    if compared:
        yield "\nViT minus the other, accuracy in percentage points, over the seeds that both have"
    for row in compared:
        yield (
            f"{row['model']:9} {row['share']:4} % {row['pairs']:4} {100 * row['difference']:+9.2f} "
            f"(95 %: {shown(row['low'], '+.2f', 100)} to {shown(row['high'], '+.2f', 100)})"
            + ("  within noise" if row["within_noise"] else "")
        )


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_run_arguments(parser)
    parser.add_argument("--recipe", default="default", metavar="NAME", help="for all networks")
    parser.add_argument("--epochs", type=int, metavar="N", help="in place of the recipe's")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help=" ".join(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--shares", type=int, nargs="+", default=[100], metavar="N", help="%% of the training split"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        compare(args)
    except InputError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"compare.py: stopped; the same command goes on from {args.output}", file=sys.stderr)
        return 130
    return 0


def compare(args, say=say_at_once):
    """Run all that is asked for and not there yet, and print the table. InputError as above."""
    for name in args.models:
        if name not in MODELS:
            raise InputError(f"--models {name}: there is no such network; there are {', '.join(MODELS)}")
    for share in args.shares:
        if not 1 <= share <= 100:
            raise InputError(f"--shares must be from 1 to 100 (percent), not {share}")
    epochs = [] if args.epochs is None else [("epochs", args.epochs)]
    recipes = [load_recipe(args.recipe, [*epochs, ("seed", seed)]) for seed in args.seeds]

    threads, machine = share_cores(args.jobs)
    images = load_images(args.data, recipes[0])
    if "vit" in args.models:
        device = train.choose_device()
        precision = train.choose_precision("auto", device)
        check_memory(recipes[0], device, precision, len(images.train.files), len(images.classes))
    about = {
        "what": "ViT and CNNs trained alike on shares of the training split; "
        "the last epoch's score on the test split, which selects nothing",
        "recipe": {name: value for name, value in recipes[0].values().items() if name != "seed"},
        "data": describe_source(args.data, images, recipes[0]),
        "machine": machine,
    }
    work = {
        f"{name} | {share} % | seed {recipe.seed}": (one_run, (args.data, recipe, name, share, threads))
        for recipe in recipes
        for share in args.shares
        for name in args.models
    }
    for key, row, so_far in run_all(work, args.jobs, args.output, about):
        result = row.get("failed") or f"{row['accuracy']:.2%} in {row['seconds']:.0f} s"
        say(f"{so_far}  {key}: {result}")
    say("\n".join(table_of(summary(json.loads(args.output.read_text("utf-8"))))))


if __name__ == "__main__":
    sys.exit(main())
