#!/usr/bin/env python3
"""The default command's accuracy on several data sets, also with few of their training images.

    python bench/datasets.py neu-cls.zip neu-cls.zip:126 x-sdd.zip magnetic-tile.zip demo --output x.json

NAME:N trains on N of the training images, as many of each class, drawn by the seed; the test images stay
the same. What is done is what `run.py --data NAME` does, the recipe fitted to these training images; the
split has seed 42, every training seed is reported, and each run is scored once, after its last epoch.
Results are kept as they come, and the command goes on where it stopped.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parent.parent))

from lab import fitting, intake, scores, training
from lab.errors import InputError
from lab.recipe import FITTED, load_recipe
from study import runs
from study.compare import share_of
from study.means import aligned
from study.results import Results, Run, Value, open_results, run_all


@dataclass(frozen=True, kw_only=True)
class DatasetRun(Run):
    """`seconds`: of fitting the recipe and training it. `fitted`: the values that were fitted."""

    data: str
    seed: int
    train_images: int | None = None
    macro_f1: float | None = None
    steps: int | None = None
    fitted: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetResults(Results):
    command: ClassVar[str] = "bench/datasets.py"
    what: str = "test accuracy of the default command on several data sets"
    rows: dict[str, DatasetRun] = field(default_factory=dict)


@lru_cache(maxsize=1)
def load(path):
    """The lab.intake.Images at a path, in colour where they have colours."""
    return intake.load_images(path, load_recipe("default"), free=FITTED & {"channels"})


def one_run(where, path, count, name, seed):
    images, (device, precision) = load(path), where.begin()
    part, start = images.train, time.perf_counter()
    if count:
        part = share_of(part, 100 * count / len(part), seed)
    recipe = load_recipe("default", [("seed", seed), ("channels", images.fit.recipe.channels)])
    fit = fitting.fit_recipe(part, recipe, FITTED - {"channels"})
    setup = training.prepare(part, images.test, fit.recipe, device, precision)
    *_, last = training.epochs(setup, fit.recipe)
    test = images.test
    scored = scores.score(last.logits.cpu().numpy(), test.labels.numpy(), test.classes, test.files)
    return DatasetRun(
        **runs.scores_of(last, images.test),
        data=name,
        seed=seed,
        seconds=time.perf_counter() - start,
        precision=precision,
        train_images=len(part),
        macro_f1=scored.macro_f1,
        steps=len(setup.train_loader) * fit.recipe.epochs,
        fitted={name: getattr(fit.recipe, name) for name in sorted(FITTED)},
    )


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data", nargs="+", metavar="PATH[:N]", help="zip or folder as for run.py, or demo")
    parser.add_argument("--output", required=True, type=Path, metavar="JSON", help="goes on from there")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    where, work, rows = runs.Where("", jobs=args.jobs), {}, {}
    try:
        for text in args.data:
            path, _, count = text.partition(":")
            name = Path(path).name + (f", {count} training images" if count else "")
            for seed in args.seeds:
                work[f"{name} | seed {seed}"] = partial(one_run, where, path, int(count or 0), name, seed)
        about = DatasetResults(machine=where.machine(), jobs=args.jobs)
        for key, row, so_far in run_all(work, args.output, open_results(args.output, about)):
            rows[key] = row
            print(f"{so_far}  {key}: {1 - row.errors / row.images:.2%}, {row.seconds:.0f} s", flush=True)
    except (InputError, ValueError) as error:
        print(f"datasets.py: {error}", file=sys.stderr)
        return 2
    show(rows.values())
    return 0


def show(rows):
    """The table: mean and standard deviation over the seeds, accuracies in %."""
    table = [["data", "train", "test", "runs", "mean", "sd", "min", "macro-F1", "seconds"]]
    for name in dict.fromkeys(row.data for row in rows):
        of_set = [row for row in rows if row.data == name]
        scores = [100 * row.accuracy for row in of_set]
        spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        sizes = of_set[0].train_images, of_set[0].images, len(of_set)
        shown = f"{statistics.mean(scores):.2f}", f"{spread:.2f}", f"{min(scores):.2f}"
        f1 = f"{statistics.mean(row.macro_f1 for row in of_set):.3f}"
        table.append(
            [name, *map(str, sizes), *shown, f1, f"{statistics.mean(r.seconds for r in of_set):.0f}"]
        )
    print("", *aligned(table), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
