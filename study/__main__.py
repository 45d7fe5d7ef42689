"""Studies of recipes, each a command: python -m study search | trials | diary | compare"""

import argparse
import sys
from pathlib import Path

from lab.errors import InputError
from lab.limits import limits_of
from lab.recipe import load_recipe, parse_setting

HEAD = """\
Studies of recipes. All go on where they stopped, when the same command is given again.

    python -m study search  --data dataset.zip --output study.json --budget 10m
    python -m study trials  --data dataset.zip --output trials.json --plan trials.toml
    python -m study diary   --data dataset.zip --output diary.json
    python -m study compare --data dataset.zip --output compare.json

search, trials and diary hold out parts of the training split; the test split is not looked at.
"""
SEARCH = """\
Search for a better recipe with Optuna: the recipe itself first, then others, each trained on all
folds of the training split but one and scored on that one.

    python -m study search --data dataset.zip --output study.json --budget 10m
    python run.py --student-id 0812345 --data dataset.zip --recipe study.toml

Each trial is in study.json, the best recipe in study.toml. Ctrl-C stops the search. Given several times
at once, on one machine or on several that share --storage, the command works on one study together.
"""
TRIALS = """\
Compare recipes: each is trained once for each fold of the training split and scored on that fold.

    python -m study trials --data dataset.zip --output trials.json --plan trials.toml

with trials.toml such as

    [trials]
    "as it is" = {}
    "longer" = { epochs = 120 }
"""
DIARY = """\
Keep an ablation diary: one hyperparameter changed at a time, each value trained once for each fold of
the training split and compared, fold by fold, with the recipe itself.

    python -m study diary --data dataset.zip --output diary.json
    python run.py --student-id 0812345 --data dataset.zip --diary diary.json

The plan has a table [start] of what all runs share, and a table [values] of lines like  depth = [3, 9].
"""
COMPARE = """\
Train the recipe's ViT beside convolutional networks on the same images, on all or few of them.

    python -m study compare --data dataset.zip --output compare.json --shares 10 25 50 100
    python run.py --student-id 0812345 --data dataset.zip --compare compare.json

The score is the last epoch's on the test split, which selects nothing.
"""


def make_parser():
    common, folds, jobs = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    add = common.add_argument
    add("--data", required=True, metavar="PATH", help="zip or folder, as for run.py")
    add("--output", required=True, type=Path, metavar="JSON", help="results; goes on from there")
    add("--recipe", default="default", metavar="NAME", help="what the study is about (default: default)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    add("--limit", action="append", default=[], metavar="NAME=N", help="as for run.py, e.g. images=300000")
    folds.add_argument("--folds", type=int, default=4, metavar="N", help="parts, 2 to 20 (default: 4)")
    folds.add_argument("--fold-seed", type=int, default=0, metavar="N", help="seed of the cut (default: 0)")
    jobs.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, which share the cores")

    form = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(prog="python -m study", description=HEAD, **form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="search|trials|diary|compare")
    for name, text, add_to, parents in (
        ("search", SEARCH, _add_search, [common, folds]),
        ("trials", TRIALS, _add_trials, [common, folds, jobs]),
        ("diary", DIARY, _add_diary, [common, folds, jobs]),
        ("compare", COMPARE, _add_compare, [common, jobs]),
    ):
        add_to(commands.add_parser(name, description=text, parents=parents, **form).add_argument)
    return parser


def _add_search(add):
    add("--budget", required=True, metavar="HOW MUCH", help="90s, 10m or 2h, or a number of trials in all")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a value of the recipe, to keep")
    add("--fold", type=int, default=0, metavar="N", help="the part to score on (default: 0)")
    add(
        "--storage",
        metavar="PATH|URL",
        help="where the study lies: a SQLite file (default: --output with the ending .db), a database, e.g. "
        "postgresql+psycopg://user@host/name, or for a shared folder a file ending in .journal",
    )


def _add_trials(add):
    add("--plan", required=True, metavar="TOML", help="the recipes, see above")


def _add_diary(add):
    add("--plan", metavar="TOML", help="the changes (default: study/recorded/diary.toml)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change a value of the recipe")


def _add_compare(add):
    add("--epochs", type=int, metavar="N", help="in place of the recipe's")
    add("--models", nargs="+", default=["vit", "cnn", "resnet18"], metavar="NAME", help="vit cnn resnet18")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of the runs (default: 0 1 2)")
    add("--shares", type=int, nargs="+", default=[100], metavar="N", help="%% of the training split")


def say(line):
    print(line, flush=True)


def where_of(args):
    from study.runs import Where

    return Where(args.data, args.device, args.precision, limits_of(args.limit), getattr(args, "jobs", 1))


def folds_of(args):
    from study.runs import Folds

    return Folds(args.folds, args.fold_seed)


def check(args):
    """InputError for values out of range, before anything slow is imported."""
    if not 2 <= getattr(args, "folds", 2) <= 20:
        raise InputError(f"--folds must be from 2 to 20, not {args.folds}")
    if getattr(args, "jobs", 1) < 1:
        raise InputError(f"--jobs must be 1 or more, not {args.jobs}")
    if args.output.suffix != ".json":  # recipes, plans and studies may lie beside it
        raise InputError(f"--output {args.output}: name it .json")


def search(args):
    changed = dict(map(parse_setting, args.set))
    base = load_recipe(args.recipe, changed.items())
    if not 0 <= args.fold < args.folds:
        raise InputError(f"--fold must be from 0 to {args.folds - 1}, not {args.fold}")
    try:
        from study import search as study
    except ModuleNotFoundError:
        raise InputError("the package optuna is missing: pip install -r requirements.txt") from None

    at, budget = (folds_of(args), args.fold), study.parse_budget(args.budget)
    study.search(where_of(args), base, changed, *at, budget, args.output, storage=args.storage, say=say)


def trials(args):
    from study import trials as study

    recipes = study.load_trials(args.plan, args.recipe)
    study.run_trials(where_of(args), recipes, folds_of(args), args.output, say)


def diary(args):
    from study import diary as study
    from study.findings import DIARY_PLAN

    recipe = load_recipe(args.recipe, map(parse_setting, args.set))
    plan = study.load_plan(args.plan or DIARY_PLAN, recipe)
    study.keep_diary(where_of(args), plan, Path(args.recipe).stem, folds_of(args), args.output, say)


def compare(args):
    from study import compare as study

    epochs = [] if args.epochs is None else [("epochs", args.epochs)]
    recipe = load_recipe(args.recipe, epochs)
    study.compare(where_of(args), recipe, args.seeds, args.shares, args.models, args.output, say)


def main(argv=None):
    """Exit code 0: done; 2: input cannot be used; 130: Ctrl-C."""
    args = make_parser().parse_args(argv)
    try:
        check(args)
        {"search": search, "trials": trials, "diary": diary, "compare": compare}[args.command](args)
    except InputError as error:
        print(f"study {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"study {args.command}: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
