"""Recipes beside each other: each trained once for each fold, fewest validation errors first."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from lab.errors import InputError
from lab.recipe import Recipe, load_recipe, read_toml
from study import means
from study.results import Results, Run, read_results, run_study


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


def check_recipes(output, kind, work):
    """InputError where the file `output`, of results of this kind, has a row of `work`, {key: call}, of
    another recipe."""
    there = read_results(output, kind).rows if output.exists() else {}
    for key in there.keys() & work.keys():
        if there[key].recipe != next(a for a in work[key].args if isinstance(a, Recipe)):
            raise InputError(f"{output} holds runs of another recipe as {key!r}: name another file")


def run_trials(where, recipes, folds, output, say=print):
    """Run what the file `output` lacks of {name: Recipe} on all folds, and say how they compare."""
    about = TrialResults(**where.about(next(iter(recipes.values())), folds), folds=folds)
    work = {
        f"{name} | fold {number}": partial(run_one, where, recipe, folds, number)
        for number in range(folds)
        for name, recipe in recipes.items()
    }
    check_recipes(output, TrialResults, work)
    rows = run_study(work, output, about, say).rows
    trials = {name: {n: rows[f"{name} | fold {n}"] for n in range(folds)} for name in recipes}
    say("\n".join(["", *table_of(trials)]))


def table_of(trials):
    """{name: {fold: row}} as lines for the terminal, accuracies in %."""
    wrong = {name: sum(run.errors for run in means.whole(group)) for name, group in trials.items()}
    best_first = sorted(
        trials, key=lambda name: (len(trials[name]) - len(means.whole(trials[name])), wrong[name])
    )
    table = [[name, str(wrong[name]), *means.cells(**means.of(trials[name]))] for name in best_first]
    return means.aligned([["trial", "wrong", *means.CELLS], *table])
