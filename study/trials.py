"""Recipes beside each other: each trained once for each fold, fewest validation errors first."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from lab.errors import InputError
from lab.recipe import Recipe, load_recipe, read_toml
from study.noise import mean
from study.results import Results, Run, check_folder, run_study


@dataclass(frozen=True, kw_only=True)
class TrialRun(Run):
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class TrialResults(Results):
    command: ClassVar[str] = "python -m study trials"
    what: str = "errors on the validation folds of the training split; the test split was not used"
    folds: int
    fold_seed: int
    rows: dict[str, TrialRun] = field(default_factory=dict)


def load_trials(path, base="default"):
    """{name: Recipe} of the lines in the table [trials] of a .toml, each with what it changes of `base`."""
    trials = read_toml(path).get("trials")
    if not isinstance(trials, dict) or not trials or not all(isinstance(t, dict) for t in trials.values()):
        raise InputError(f'{path}: it needs a table [trials] of lines like "name" = {{ epochs = 9 }}')
    return {name: load_recipe(base, changed.items()) for name, changed in trials.items()}


def run_one(where, recipe, folds, number):
    from study import runs  # imports PyTorch

    split = runs.cached_images(where, recipe).train
    run = runs.train_and_score(*runs.fold_of(split, folds, number), recipe, where)
    return TrialRun(**vars(run) | {"recipe": recipe})


def run_trials(where, recipes, folds, output, say=print):
    """Run what the file `output` lacks of {name: Recipe} on all folds, and say how they compare."""
    from study import runs

    check_folder(output)
    images = runs.load_images(where, next(iter(recipes.values())))
    runs.check_folds(images.train, folds)
    about = TrialResults(**where.about(images.facts), folds=folds.count, fold_seed=folds.seed)
    work = {
        f"{name} | fold {number}": partial(run_one, where, recipe, folds, number)
        for number in range(folds.count)
        for name, recipe in recipes.items()
    }
    rows = run_study(work, output, about, say).rows
    say("\n".join(table_of({n: [rows[f"{n} | fold {i}"] for i in range(folds.count)] for n in recipes})))


def table_of(of_trial):
    """{name: rows} as lines for the terminal."""
    yield f"\n{'trial':40} {'folds':>5} {'wrong':>6} {'accuracy':>9} {'loss':>7} {'s each':>7}"
    whole = {name: rows for name, rows in of_trial.items() if not any(row.failed for row in rows)}
    for name, rows in sorted(whole.items(), key=lambda item: sum(row.errors for row in item[1])):
        wrong, images = sum(row.errors for row in rows), sum(row.images for row in rows)
        loss, seconds = mean(row.loss for row in rows), mean(row.seconds for row in rows)
        yield f"{name:40} {len(rows):5} {wrong:6} {1 - wrong / images:9.2%} {loss:7.3f} {seconds:7.0f}"
    for name in of_trial.keys() - whole.keys():
        yield f"{name:40} failed"
