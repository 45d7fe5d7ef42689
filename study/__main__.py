"""Studies of recipes, each a command: python -m study search | trials | diary | compare

    python -m study search  --data dataset.zip --output study.json --budget 10m
    python -m study trials  --data dataset.zip --output trials.json --plan trials.toml
    python -m study diary   --data dataset.zip --output diary.json
    python -m study compare --data dataset.zip --output compare.json --shares 10 25 50 100

search, trials and diary hold out parts of the training split; the test split is not looked at. All go on
where they stopped, when the same command is given again. What each finds and how: docs/studies.md.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from lab.errors import InputError, exit_code
from lab.limits import limits_of
from lab.options import Once, add_choices, choices_of
from lab.recipe import free_names, load_recipe, parse_setting
from study.results import check_folder

say = partial(print, flush=True)  # a line is seen at once in a file, too

ABOUT = {
    "search": "Try other recipes with Optuna: all are in --output, the best one as .toml beside it.",
    "trials": "Compare recipes on all folds. The plan has a table [trials] of lines long = { epochs = 99 }.",
    "diary": "Change one value at a time, on all folds. The plan has a table [start] of what all runs share, "
    "and a table [values] of lines depth = [3, 9].",
    "compare": "Train the ViT beside CNNs on the same images. The test split only scores them.",
}


def make_parser():
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__, **form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="search|trials|diary|compare")
    parsers = {
        name: commands.add_parser(name, description=text, help=text, allow_abbrev=False)
        for name, text in ABOUT.items()
    }
    for parser_of in parsers.values():
        parser_of.register("action", None, Once)

    def add(names, flag, **about):
        for name in names.split():
            parsers[name].add_argument(flag, **about)

    every, folds = "search trials diary compare", "search trials diary"
    add(every, "--data", required=True, metavar="PATH", help="zip or folder, as for run.py")
    add(every, "--output", required=True, type=Path, metavar="JSON", help="results; goes on from there")
    add(every, "--recipe", default="default", metavar="NAME", help="what it is about (default: default)")
    add(every, "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    add(every, "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    add(every, "--limit", action="append", default=[], metavar="NAME=N", help="e.g. images=300000")
    for parser_of in parsers.values():
        add_choices(parser_of)
    add(folds, "--folds", type=int, default=4, metavar="N", help="parts, 2 to 20 (default: 4)")
    add("trials diary compare", "--jobs", type=int, default=1, metavar="N", help="runs at once")
    add("search diary", "--set", action="append", default=[], metavar="NAME=VALUE", help="of the recipe")

    add("search", "--budget", required=True, metavar="HOW MUCH", help="90s, 10m, 2h, or trials in all")
    add("search", "--fold", type=int, default=0, metavar="N", help="the part to score on (default: 0)")
    where = "a SQLite file (default: --output as .db), a .journal file, or a database's URL"
    add("search", "--storage", metavar="PATH|URL", help=where)
    add("trials", "--plan", required=True, metavar="TOML", help="the recipes, see above")
    add("diary", "--plan", metavar="TOML", help="the changes (default: study/recorded/diary.toml)")
    add("compare", "--epochs", type=int, metavar="N", help="in place of the recipe's")
    add("compare", "--models", nargs="+", default=["vit", "cnn", "resnet18"], metavar="NAME")
    add("compare", "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    shares = {"nargs": "+", "default": [100], "help": "%% of the training split"}
    add("compare", "--shares", type=float, metavar="N", **shares)
    equal = {"nargs": "+", "choices": ("steps", "time"), "default": ["steps"]}
    add("compare", "--equal", help="what the networks have alike (default: steps)", **equal)
    tuned = "first tune each network's learning rate and mixup; rows in --output as -tuning.json"
    add("compare", "--tune", action="store_true", help=tuned)
    return parser


def where_of(args):
    from study.runs import Where  # imports PyTorch

    jobs, limits = getattr(args, "jobs", 1), limits_of(args.limit)
    return Where(args.data, args.device, args.precision, limits, jobs, choices_of(args))


def check(args):
    """InputError for values out of range, before anything slow is imported."""
    if not 2 <= getattr(args, "folds", 2) <= 20:
        raise InputError(f"--folds must be from 2 to 20, not {args.folds}")
    if not 0 <= getattr(args, "fold", 0) < getattr(args, "folds", 1):
        raise InputError(f"--fold must be from 0 to {args.folds - 1}, not {args.fold}")
    if getattr(args, "jobs", 1) < 1:
        raise InputError(f"--jobs must be 1 or more, not {args.jobs}")
    if args.output.suffix != ".json":  # recipes, plans and studies may lie beside it
        raise InputError(f"--output {args.output}: name it .json")
    check_folder(args.output)


def recipe_of(args, where, settings):
    """The recipe that is named, with such (name, value) settings; `default` is fitted to the images."""
    from study.runs import fit

    return fit(where, load_recipe(args.recipe, settings), free_names(args.recipe, settings))


def search(args):
    changed = dict(map(parse_setting, args.set))
    load_recipe(args.recipe, changed.items())  # a wrong value is told before anything slow
    from study import search as study

    budget, where = study.parse_budget(args.budget), where_of(args)
    base = recipe_of(args, where, changed.items())
    study.search(
        where, base, changed, args.folds, args.fold, budget, args.output, storage=args.storage, say=say
    )


def trials(args):
    from study import trials as study

    recipes = study.load_trials(args.plan, args.recipe)
    study.run_trials(where_of(args), recipes, args.folds, args.output, say)


def diary(args):
    from study import diary as study
    from study.findings import DIARY_PLAN

    where, settings = where_of(args), list(map(parse_setting, args.set))
    plan = study.load_plan(args.plan or DIARY_PLAN, recipe_of(args, where, settings))
    study.keep_diary(where, plan, Path(args.recipe).name, args.folds, args.output, say)


def compare(args):
    from study import compare as study

    settings = [] if args.epochs is None else [("epochs", args.epochs)]
    study.check(args.models, args.shares)  # before the images are read
    for seed in args.seeds:
        load_recipe(args.recipe, [*settings, ("seed", seed)])
    where = where_of(args)
    recipe = recipe_of(args, where, settings)
    tuned = None
    if args.tune:
        tuned = study.tune(
            where, recipe, args.models, args.output.with_stem(f"{args.output.stem}-tuning"), say
        )
    study.compare(
        where, recipe, args.seeds, args.shares, args.models, args.output, say, equals=args.equal, tuned=tuned
    )


def main(argv=None):
    """Exit code 0: done; 2: input cannot be used; 130: Ctrl-C."""
    args = make_parser().parse_args(argv)

    def work():
        check(args)
        {"search": search, "trials": trials, "diary": diary, "compare": compare}[args.command](args)
        return 0

    return exit_code(f"study {args.command}", work, "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
