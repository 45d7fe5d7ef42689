#!/usr/bin/env python3
"""Compare recipes on a validation part of the training split. The test split is never looked at.

    python tune.py --data dataset.zip --trials studies/trials.toml --output studies/mine.json

Each trial of the .toml is a recipe with some values changed. It is trained once for each fold: the
training split is cut into as many parts, class by class, and each part in turn is held out to
validate on. The output file gets each result as soon as it is there, failures too; called again, the
command goes on where it stopped.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from recipe import InputError, load_recipe, read_toml


def folds_of(images, folds, seed):
    """The training split of `images` (data.Data) cut in `folds`: for each, a Data whose `train` is the
    rest and whose `test` is the part held out. Classes are stratified; equal images stay together."""
    import torch
    from sklearn.model_selection import StratifiedGroupKFold

    whole = images.train
    groups = [images.pictures[tuple(file.split("/", 1))].digest for file in whole.files]
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)

    def part(rows):
        return type(whole)(
            whole.images[torch.as_tensor(rows)],
            whole.labels[torch.as_tensor(rows)],
            [whole.files[row] for row in rows],
        )

    for rest, held_out in cut.split(whole.files, whole.labels.tolist(), groups):
        yield images._replace(train=part(rest), test=part(held_out))


def load_images(source, recipe):
    """data.Data of a zip or folder, for such a recipe. Only the pixels stay; the files are cleared away."""
    import data

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        images = data.load_data(data.open_source(source, run).folder, run / "dataset_split", recipe)
    if images.unreadable:
        raise InputError(f"{len(images.unreadable)} images can't be read: remove them before a study")
    return images


def train_and_score(images, recipe, threads=None):
    """Train on images.train, score images.test after the last epoch: a JSON-ready row.

    A run that fails for its values (a loss that is no number, a size that fits nowhere) gives a row
    with "failed" in place of the scores.
    """
    import torch

    import data
    import train

    if threads:
        torch.set_num_threads(threads)
    device = train.choose_device()
    precision = train.choose_precision("auto", device)
    start = time.perf_counter()
    try:
        model = train.make_model(recipe, len(images.classes)).to(device)
        loaders = data.make_loaders(images, recipe, device)
        for row in train.fit(model, *loaders, recipe, precision=precision, log=lambda line: None):
            last = row
    except (InputError, ValueError, RuntimeError) as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    total = len(images.test.files)
    return {
        "errors": total - round(last["test_accuracy"] * total),
        "images": total,
        "loss": last["test_loss"],
        "train_loss": last["train_loss"],
        "seconds": time.perf_counter() - start,
        "precision": precision,
    }


def run_all(work, jobs, path, about):
    """Run {key: (function, arguments)} in `jobs` processes, keeping each row in the JSON at `path`.

    Keys already there are not run again. Yields (key, row, number done, number in all).
    """
    from record import write_record

    record = json.loads(path.read_text()) if path.is_file() else about | {"rows": {}}
    rows, todo = record["rows"], {key: call for key, call in work.items() if key not in record["rows"]}
    done = len(work) - len(todo)
    for key in work.keys() - todo.keys():
        yield key, rows[key], done, len(work)
    # Fresh processes: a copy of this one would inherit PyTorch's threads as they stand, and hang.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(function, *args): key for key, (function, args) in todo.items()}
        for future in as_completed(futures):
            key = futures[future]
            rows[key] = future.result() | {"date": datetime.datetime.now().isoformat(timespec="seconds")}
            write_record(path, record)
            done += 1
            yield key, rows[key], done, len(work)


def _trial(source, recipe, fold, folds, seed, threads):
    images = list(folds_of(load_images(source, recipe), folds, seed))[fold]
    return {"recipe": recipe.values()} | train_and_score(images, recipe, threads)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", required=True, metavar="PATH", help="zip or folder, as for run.py")
    parser.add_argument(
        "--trials",
        required=True,
        metavar="TOML",
        help='a table [trials] of lines like  "more epochs" = { epochs = 120 }',
    )
    parser.add_argument("--recipe", default="default", metavar="NAME", help="what the trials change")
    parser.add_argument("--folds", type=int, default=4, metavar="N", help="parts, 2 to 20 (default: 4)")
    parser.add_argument("--fold-seed", type=int, default=0, metavar="N", help="seed of the cut (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="JSON", help="results; goes on from there"
    )
    args = parser.parse_args(argv)
    try:
        if not 2 <= args.folds <= 20:
            raise InputError(f"--folds must be from 2 to 20, not {args.folds}")
        if args.jobs < 1:
            raise InputError(f"--jobs must be 1 or more, not {args.jobs}")
        trials = read_toml(args.trials).get("trials")
        if not isinstance(trials, dict) or not all(isinstance(t, dict) for t in trials.values()):
            raise InputError(
                f'{args.trials}: it needs a table [trials] of lines like "name" = {{ epochs = 9 }}'
            )
        recipes = {name: load_recipe(args.recipe, changed.items()) for name, changed in trials.items()}
        compare(args, recipes)
    except InputError as error:
        print(f"tune.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"tune.py: stopped; the same command goes on from {args.output}", file=sys.stderr)
        return 130
    return 0


def compare(args, recipes):
    """Run all trials and print them, fewest validation errors first."""
    from record import describe_machine
    from train import choose_device

    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    about = {
        "what": "errors on the validation folds of the training split; the test split was not used",
        "folds": args.folds,
        "fold_seed": args.fold_seed,
        "machine": describe_machine(choose_device()) | {"threads": threads, "jobs": args.jobs},
    }
    work = {
        f"{name} | fold {fold}": (_trial, (args.data, recipe, fold, args.folds, args.fold_seed, threads))
        for fold in range(args.folds)
        for name, recipe in recipes.items()
    }
    totals = {name: [] for name in recipes}
    for key, row, done, of in run_all(work, args.jobs, args.output, about):
        totals[key.rpartition(" | ")[0]].append(row)
        result = row.get("failed") or f"{row['errors']}/{row['images']} wrong, loss {row['loss']:.3f}"
        print(f"{done}/{of}  {key}: {result}", flush=True)
    print(f"\n{'trial':40} {'folds':>5} {'wrong':>6} {'accuracy':>9} {'loss':>7} {'s each':>7}")
    whole = {name: rows for name, rows in totals.items() if not any("failed" in row for row in rows)}
    for name, rows in sorted(whole.items(), key=lambda item: sum(row["errors"] for row in item[1])):
        wrong, images = (sum(row[what] for row in rows) for what in ("errors", "images"))
        loss, seconds = (sum(row[what] for row in rows) / len(rows) for what in ("loss", "seconds"))
        print(f"{name:40} {len(rows):5} {wrong:6} {1 - wrong / images:9.2%} {loss:7.3f} {seconds:7.0f}")
    for name in totals.keys() - whole.keys():
        print(f"{name:40} failed")


if __name__ == "__main__":
    sys.exit(main())
