#!/usr/bin/env python3
"""Test accuracy over training seeds and split seeds: mean and spread, never the best one.

    python bench/seeds.py --data neu-cls.zip --recipe default --output x.json

Nothing is chosen here: the recipe was fixed on validation folds (study/), every seed is reported, and
each run scores the test split once, after its last epoch. Results are kept as they come; the
command goes on where it stopped.
"""

import argparse
import dataclasses
import statistics
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parent.parent))

from lab.errors import InputError
from lab.recipe import free_names, load_recipe
from study.results import Results, open_results, run_all
from study.runs import Where, cached_images, fit, train_and_score
from study.trials import TrialRun, check_recipes


@dataclass(frozen=True, kw_only=True)
class SeedResults(Results):
    command: ClassVar[str] = "bench/seeds.py"
    rows: dict[str, TrialRun] = field(default_factory=dict)


def one_run(where, recipe):
    images = cached_images(where, recipe)
    run = train_and_score(images.train, images.test, recipe, where)
    return TrialRun(**vars(run) | {"recipe": recipe})


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", required=True, metavar="PATH", help="zip or folder, as for run.py")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="JSON", help="results; goes on from there"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    parser.add_argument("--recipe", default="default", metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument("--split-seeds", type=int, nargs="+", default=[42, 43, 44], metavar="N")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    where, work, rows = Where(args.data, jobs=args.jobs), {}, {}
    try:
        for split in args.split_seeds:
            recipe = load_recipe(args.recipe, [("split_seed", split)])
            fitted = fit(where, recipe, free_names(args.recipe, []))
            for seed in args.seeds:
                recipe = dataclasses.replace(fitted, seed=seed)
                work[f"split {split} | seed {seed}"] = partial(one_run, where, recipe)
        what = f"test accuracy of the recipe {args.recipe}"
        about = SeedResults(what=what, **where.about(recipe))
        check_recipes(args.output, SeedResults, work)
        for key, row, so_far in run_all(work, args.output, open_results(args.output, about)):
            rows[key] = row
            print(f"{so_far}  {key}: {row.failed or 1 - row.errors / row.images}", flush=True)
    except InputError as error:
        print(f"seeds.py: {error}", file=sys.stderr)
        return 2

    print(f"\nRecipe {args.recipe}, test accuracy in %")
    print(f"{'split seed':>10} {'runs':>5} {'mean':>7} {'sd':>6} {'min':>7} {'max':>7} {'s each':>7}")
    for split in args.split_seeds:
        of_split = [row for key, row in rows.items() if key.startswith(f"split {split} ")]
        scores = [100 * (1 - row.errors / row.images) for row in of_split if not row.failed]
        if not scores:
            print(f"{split:10} failed")
            continue
        spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        seconds = statistics.mean(row.seconds for row in of_split if not row.failed)
        print(
            f"{split:10} {len(scores):5} {statistics.mean(scores):7.2f} {spread:6.2f} "
            f"{min(scores):7.2f} {max(scores):7.2f} {seconds:7.0f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
