#!/usr/bin/env python3
"""Test accuracy over training seeds and split seeds: mean and spread, never the best one.

    python bench/seeds.py --data neu-cls.zip --recipe default --output studies/neu-cls-seeds.json

Nothing is chosen here: the recipe was fixed on validation folds (tune.py), every seed is reported, and
each run scores the test split once, after its last epoch. Results are kept as they come; the
command goes on where it stopped.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from recipe import InputError, load_recipe
from tune import add_run_arguments, load_images, run_all, share_cores, train_and_score


def one_run(source, recipe, threads):
    return {"recipe": recipe.values()} | train_and_score(load_images(source, recipe), recipe, threads)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_run_arguments(parser)
    parser.add_argument("--recipe", default="default", metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument("--split-seeds", type=int, nargs="+", default=[42, 43, 44], metavar="N")
    args = parser.parse_args(argv)

    work = {}
    try:
        threads, machine = share_cores(args.jobs)
        for split in args.split_seeds:
            for seed in args.seeds:
                recipe = load_recipe(args.recipe, [("seed", seed), ("split_seed", split)])
                work[f"split {split} | seed {seed}"] = (one_run, (args.data, recipe, threads))
        about = {"what": f"test accuracy of the recipe {args.recipe}", "machine": machine}
        rows = {}
        for key, row, so_far in run_all(work, args.jobs, args.output, about):
            rows[key] = row
            print(f"{so_far}  {key}: {row.get('failed') or 1 - row['errors'] / row['images']}", flush=True)
    except InputError as error:
        print(f"seeds.py: {error}", file=sys.stderr)
        return 2

    print(f"\nRecipe {args.recipe}, test accuracy in %")
    print(f"{'split seed':>10} {'runs':>5} {'mean':>7} {'sd':>6} {'min':>7} {'max':>7} {'s each':>7}")
    for split in args.split_seeds:
        of_split = [row for key, row in rows.items() if key.startswith(f"split {split} ")]
        scores = [100 * (1 - row["errors"] / row["images"]) for row in of_split]
        spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        seconds = statistics.mean(row["seconds"] for row in of_split)
        print(
            f"{split:10} {len(scores):5} {statistics.mean(scores):7.2f} {spread:6.2f} "
            f"{min(scores):7.2f} {max(scores):7.2f} {seconds:7.0f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
