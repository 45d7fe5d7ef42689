"""Recipes beside each other: each trained once for each fold, fewest validation errors first."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from lab.errors import InputError
from lab.recipe import Recipe, load_recipe, read_toml
from study.figures import aligned, mean
from study.results import Results, Run, check_folder, run_study


@dataclass(frozen=True, kw_only=True)
class TrialRun(Run):
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class TrialResults(Results):
    command: ClassVar[str] = "python -m study trials"
    what: str = "errors on the validation folds of the training split; the test split was not used"
    folds: int
    rows: dict[str, TrialRun] = field(default_factory=dict)


def load_trials(path, base="default"):
    """{name: Recipe} of the lines in the table [trials] of a .toml, each with what it changes of `base`."""
    trials = read_toml(path).get("trials")
    if not isinstance(trials, dict) or not trials or not all(isinstance(t, dict) for t in trials.values()):
        raise InputError(f'{path}: it needs a table [trials] of lines like "name" = {{ epochs = 9 }}')
    return {name: load_recipe(base, changed.items()) for name, changed in trials.items()}


def run_one(where, recipe, folds, number):
    from study import runs  # imports PyTorch

    return TrialRun(**vars(runs.score_fold(where, recipe, folds, number)) | {"recipe": recipe})


def run_trials(where, recipes, folds, output, say=print):
    """Run what the file `output` lacks of {name: Recipe} on all folds, and say how they compare."""
    check_folder(output)
    about = TrialResults(**where.about(next(iter(recipes.values())), folds), folds=folds)
    work = {
        f"{name} | fold {number}": partial(run_one, where, recipe, folds, number)
        for number in range(folds)
        for name, recipe in recipes.items()
    }
    rows = run_study(work, output, about, say).rows
    trials = {name: [rows[f"{name} | fold {number}"] for number in range(folds)] for name in recipes}
    say("\n".join(["", *table_of(trials)]))


def table_of(trials):
    """{name: rows} as lines for the terminal."""
    table = [["trial", "folds", "wrong", "accuracy", "loss", "s each"]]
    whole = {name: rows for name, rows in trials.items() if not any(row.failed for row in rows)}
    for name, rows in sorted(whole.items(), key=lambda item: sum(row.errors for row in item[1])):
        wrong, images = sum(row.errors for row in rows), sum(row.images for row in rows)
        loss, seconds = mean(row.loss for row in rows), mean(row.seconds for row in rows)
        cells = len(rows), wrong, f"{1 - wrong / images:.2%}", f"{loss:.3f}", f"{seconds:.0f}"
        table.append([name, *map(str, cells)])
    table += [[name, "failed", "", "", "", ""] for name in trials if name not in whole]
    return aligned(table)
