#!/usr/bin/env python3
"""Compare recipes, or search for a better one, on a validation part of the training split. The test
split is never looked at.

    python tune.py --data dataset.zip --diary studies/diary.toml --output diary.json
    python tune.py --data dataset.zip --trials trials.toml --output trials.json
    python tune.py --data dataset.zip --budget 10m --output study.json

With --diary one hyperparameter is changed at a time (diary.py), and each change is compared with the
recipe itself; with --trials each trial of the .toml is a recipe with some values changed. Either
trains once for each fold: the training split is cut into as many parts, class by class, and each part
in turn is held out to validate on. The output file gets each result as soon as it is there, failures
too; called again, the command goes on where it stopped.

With --budget Optuna searches (search.py): the recipe itself first, then others, each trained on all
folds but one and validated on that. The best is written to study.toml beside study.json. The same
command, called again, goes on; called several times at once, on one machine or on many that share
--storage, it works on one study together.
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
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path

from recipe import InputError, Recipe, load_recipe, parse_setting, read_toml


def folds_of(images, folds, seed):
    """The training split of `images` (data.Data) cut in `folds`: for each, a Data whose `train` is the
    rest and whose `test` is the part held out. Classes are stratified; equal images stay together."""
    import numpy as np
    import torch
    from sklearn.model_selection import StratifiedGroupKFold

    whole = images.train
    groups = [images.pictures[tuple(file.split("/", 1))].digest for file in whole.files]
    # The groups are numbered in a shuffled order and then cut unshuffled: what shuffle=True does since
    # scikit-learn 1.8. Before that, as on Python 3.10, it mixed up the groups and did not stratify (#32478).
    names, numbers = np.unique(groups, return_inverse=True)
    place = np.argsort(np.random.RandomState(seed).permutation(len(names)))
    cut = StratifiedGroupKFold(folds)

    def part(rows):
        return type(whole)(
            whole.images[torch.as_tensor(rows)],
            whole.labels[torch.as_tensor(rows)],
            [whole.files[row] for row in rows],
        )

    for rest, held_out in cut.split(whole.files, whole.labels.tolist(), place[numbers]):
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


@lru_cache(maxsize=2)
def _images(source, size, channels, split_seed):
    return load_images(
        source, Recipe(image_size=size, patch_size=size, channels=channels, split_seed=split_seed)
    )


def cached_images(source, recipe):
    """As load_images, but a process that asks for the same pixels again has them at once."""
    return _images(source, recipe.image_size, recipe.channels, recipe.split_seed)


def train_and_score(images, recipe, threads=None, prepare=None):
    """Train on images.train, score images.test after the last epoch: a JSON-ready row.

    `prepare` may change the new model before it is trained. A run that fails for its values (a loss that is
    no number, a size that fits nowhere) gives a row with "failed" in place of the scores.
    """
    import torch

    import data
    import train
    from machine import check_memory

    if threads:
        torch.set_num_threads(threads)
    device = train.choose_device()
    precision = train.choose_precision("auto", device)
    start = time.perf_counter()
    try:
        check_memory(recipe, device, precision, len(images.train.files), len(images.classes))
        model = train.make_model(recipe, len(images.classes)).to(device)
        if prepare:
            prepare(model)
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


def share_cores(jobs):
    """(threads for each of so many runs at once, the machine as a record describes it). InputError for
    fewer than one."""
    if jobs < 1:
        raise InputError(f"--jobs must be 1 or more, not {jobs}")
    from record import describe_machine
    from train import choose_device

    threads = max(1, (os.cpu_count() or 1) // jobs)
    return threads, describe_machine(choose_device()) | {"threads": threads, "jobs": jobs}


def describe_source(source, images, recipe):
    """What a results file says of the images that it is about."""
    import data

    described = data.describe_data(images, recipe)
    return {"name": Path(source).resolve().name} | {
        key: described[key] for key in ("classes", "counts", "split", "fingerprint")
    }


def open_results(path, about):
    """The results to go on with, {**about, "rows": {...}}: those in the file, or none yet.

    InputError where the file holds something else, or results of another recipe, data or folds. The
    machine and the name of the data may differ.
    """

    def told(record):
        rest = {key: value for key, value in record.items() if key not in ("machine", "rows", "data")}
        data = {key: value for key, value in record.get("data", {}).items() if key != "name"}
        return json.loads(json.dumps([rest, data]))

    if not path.is_file():
        if not path.resolve().parent.is_dir():
            raise InputError(f"--output {path}: there is no folder {path.parent}; make it first")
        return about | {"rows": {}}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        ours = record["what"] == about["what"] and isinstance(record["rows"], dict)
        there = told(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise InputError(f"--output {path} holds no results of this command: name another file")
    if there != told(about):
        raise InputError(f"--output {path} holds runs of another recipe, data or folds: name another file")
    return record


def run_all(work, jobs, path, about):
    """Run {key: (function, arguments)} in `jobs` processes, keeping each row in the JSON at `path`.

    Keys already there are not run again. Yields (key, row, "3/9, about 5 min left"). InputError as in
    open_results, and where the system ends one of the processes.
    """
    from console import clock
    from record import write_record

    record = open_results(path, about)
    rows, todo = record["rows"], {key: call for key, call in work.items() if key not in record["rows"]}
    start, done = time.monotonic(), 0

    def so_far():
        line = f"{len(work) - len(todo) + done}/{len(work)}"
        if not 0 < done < len(todo):
            return line
        left = (time.monotonic() - start) / done * (len(todo) - done)
        return f"{line}, about {clock(left)} left"

    for key in work.keys() - todo.keys():
        yield key, rows[key], so_far()
    # Fresh processes: a copy of this one would inherit PyTorch's threads as they stand, and hang.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(function, *args): key for key, (function, args) in todo.items()}
        for future in as_completed(futures):
            key = futures[future]
            try:
                row = future.result()
            except BrokenProcessPool:
                raise InputError(
                    f"{key}, or a run beside it, was ended by the system, most likely for lack of memory: "
                    f"try fewer --jobs; the command goes on from {path}"
                ) from None
            rows[key] = row | {"date": datetime.datetime.now().isoformat(timespec="seconds")}
            write_record(path, record)
            done += 1
            yield key, rows[key], so_far()


def add_run_arguments(parser):
    """The arguments of all commands that call `run_all`: --data, --jobs, --output."""
    parser.add_argument("--data", required=True, metavar="PATH", help="zip or folder, as for run.py")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at once, which share the cores (default: 1)"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="JSON", help="results; goes on from there"
    )


def _result(row):
    """A row of train_and_score in words."""
    return row.get("failed") or f"{row['errors']}/{row['images']} wrong, loss {row['loss']:.3f}"


def _trial(source, recipe, fold, folds, seed, threads):
    images = list(folds_of(cached_images(source, recipe), folds, seed))[fold]
    return {"recipe": recipe.values()} | train_and_score(images, recipe, threads)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--diary",
        metavar="TOML",
        help="one thing at a time: tables [start] and [values], see studies/diary.toml",
    )
    parser.add_argument(
        "--trials",
        metavar="TOML",
        help='compare: a table [trials] of lines like  "more epochs" = { epochs = 120 }',
    )
    parser.add_argument(
        "--budget",
        metavar="HOW MUCH",
        help="search: for 90s, 10m or 2h, or until 40 trials are finished by all processes together",
    )
    parser.add_argument("--recipe", default="default", metavar="NAME", help="what the trials change")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="search: give the recipe this value and keep it (repeatable; run.py --help lists the names)",
    )
    parser.add_argument("--fold", type=int, metavar="N", help="search: the part to validate on (default: 0)")
    parser.add_argument(
        "--storage",
        metavar="PATH|URL",
        help="search: where the study lies, a journal file or a database such as "
        "postgresql+psycopg://user@host/name (default: --output with the ending .journal)",
    )
    parser.add_argument("--folds", type=int, default=4, metavar="N", help="parts, 2 to 20 (default: 4)")
    parser.add_argument("--fold-seed", type=int, default=0, metavar="N", help="seed of the cut (default: 0)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        if not 2 <= args.folds <= 20:
            raise InputError(f"--folds must be from 2 to 20, not {args.folds}")
        if sum(way is not None for way in (args.diary, args.trials, args.budget)) != 1:
            raise InputError(
                "give one of --diary to change one thing at a time, --trials to compare recipes, "
                "--budget to search for one"
            )
        if args.budget:
            search_recipe(args)
        elif args.diary:
            keep_diary(args)
        else:
            compare(args, load_trials(args))
    except InputError as error:
        print(f"tune.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        where = args.output
        if args.budget:
            where = args.storage or args.output.with_suffix(".journal")
        if "://" in str(where):
            where = "the study in the database"  # its address may hold a password
        print(f"tune.py: stopped; the same command goes on from {where}", file=sys.stderr)
        return 130
    return 0


def load_trials(args):
    """{name: Recipe} of the file --trials."""
    if args.set or args.storage or args.fold is not None:
        raise InputError("--set, --storage and --fold don't go with --trials, which sets values in its file")
    trials = read_toml(args.trials).get("trials")
    if not isinstance(trials, dict) or not trials or not all(isinstance(t, dict) for t in trials.values()):
        raise InputError(f'{args.trials}: it needs a table [trials] of lines like "name" = {{ epochs = 9 }}')
    return {name: load_recipe(args.recipe, changed.items()) for name, changed in trials.items()}


def say_at_once(line):
    print(line, flush=True)


def search_recipe(args, say=say_at_once):
    """Search from the recipe --recipe, and write and print what was found."""
    try:
        from optuna.exceptions import StorageInternalError
    except ModuleNotFoundError:
        raise InputError("the package optuna is missing: pip install -r requirements.txt") from None

    import search

    budget, fold = search.parse_budget(args.budget), args.fold or 0
    if args.jobs != 1:
        raise InputError("--jobs goes with --trials; to search in several processes start the command again")
    if not 0 <= fold < args.folds:
        raise InputError(f"--fold must be from 0 to {args.folds - 1}, not {fold}")
    if not args.output.parent.is_dir():
        raise InputError(f"--output {args.output}: there is no folder {args.output.parent}")
    if args.output.suffix in (".toml", ".journal"):
        raise InputError(
            f"--output {args.output}: name it .json, a recipe and a journal are written beside it"
        )
    about = {"what": "a search on a validation fold of the training split; the test split was not used"}
    if args.output.exists():
        try:
            ours = json.loads(args.output.read_text()).get("what") == about["what"]
        except (ValueError, AttributeError, OSError):
            ours = False
        if not ours:
            raise InputError(f"{args.output} holds something else than a search: name another --output")
    changed = dict(map(parse_setting, args.set))
    base = load_recipe(args.recipe, changed.items())
    images = load_images(args.data, base)

    import data
    from record import describe_machine
    from train import choose_device

    try:
        part = list(folds_of(images, args.folds, args.fold_seed))[fold]
    except ValueError as error:
        raise InputError(f"the training images can't be cut in {args.folds} folds: {error}") from None
    settings = {
        "data": data.describe_data(images, base)["fingerprint"],
        "folds": args.folds,
        "fold": fold,
        "fold_seed": args.fold_seed,
        "fixed": sorted(changed),
    }
    space = search.space_of(base, changed, len(part.train.files))
    first = search.params_of(base, space)
    about["machine"] = describe_machine(choose_device())

    try:
        storage = search.open_storage(args.storage or args.output.with_suffix(".journal"))
        study = search.open_study(storage, args.output.stem, settings | base.values(), first, base.epochs)
        try:
            search.search(part, base, space, budget, study, say)
        finally:
            record, toml = search.write_results(args.output, study, base, settings, space, about)
    except (StorageInternalError, OSError) as error:
        if search.was_stopped(error):
            raise KeyboardInterrupt from None
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(f"the study's storage failed ({reason}): the same command goes on") from None
    if toml is None:
        raise InputError(
            f"no trial of the search succeeded: {args.output} says why; give it a larger --budget"
        )
    say("\n".join(["", *search.table_of(record), f"{args.output}, and the recipe: {toml}"]))


def keep_diary(args, say=say_at_once):
    """Run what the diary lacks, and print all of it."""
    import diary

    if args.storage or args.fold is not None:
        raise InputError("--storage and --fold go with --budget")
    given = load_recipe(args.recipe, map(parse_setting, args.set))
    base, settings = diary.load_diary(args.diary, given)
    threads, machine = share_cores(args.jobs)
    about = {
        "what": "one hyperparameter changed at a time, errors on validation folds of the training split; "
        "the test split was not used",
        "name": Path(args.recipe).stem,
        "recipe": {name: value for name, value in base.values().items() if name != "seed"},
        "folds": args.folds,
        "fold_seed": args.fold_seed,
        "data": describe_source(args.data, load_images(args.data, base), base),
        "machine": machine,
    }
    work = diary.work_of(args.data, base, settings, args.folds, args.fold_seed, threads)
    for key, row, so_far in run_all(work, args.jobs, args.output, about):
        say(f"{so_far}  {key}: {_result(row)}")
    table = diary.summary(json.loads(args.output.read_text("utf-8")))
    say("\n".join(["", *diary.table_of(table)]))


def compare(args, recipes):
    """Run all trials and print them, fewest validation errors first."""
    threads, machine = share_cores(args.jobs)
    first = next(iter(recipes.values()))
    about = {
        "what": "errors on the validation folds of the training split; the test split was not used",
        "folds": args.folds,
        "fold_seed": args.fold_seed,
        "data": describe_source(args.data, load_images(args.data, first), first),
        "machine": machine,
    }
    work = {
        f"{name} | fold {fold}": (_trial, (args.data, recipe, fold, args.folds, args.fold_seed, threads))
        for fold in range(args.folds)
        for name, recipe in recipes.items()
    }
    totals = {name: [] for name in recipes}
    for key, row, so_far in run_all(work, args.jobs, args.output, about):
        totals[key.rpartition(" | ")[0]].append(row)
        say_at_once(f"{so_far}  {key}: {_result(row)}")
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
