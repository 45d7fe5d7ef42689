"""The ablation diary: from one recipe, one hyperparameter changed at a time, each value trained several
times, on validation folds of the training split. The test split is never looked at.

A run has a fold and the seed of the same number: it trains on all folds but that one and is scored
on it. So the runs of two settings pair by fold and seed, and a pair's difference holds neither the
luck of the images nor that of the first weights. One run for each fold validates each training
image once.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from lab.errors import InputError
from lab.findings import Diary, DiaryRow, DiaryStart
from lab.recipe import Recipe, check_names, read_toml
from study import means
from study.results import Results, Run, Value, run_study, without_seed

# A change that no hyperparameter makes, as vit.py is the paper's: the embedding stays zero.
POSITIONS = "pos_embedding"


@dataclass(frozen=True)
class Plan:
    """`start`: the recipe that all else is compared with; `settings`: (name, value) -> the recipe with it."""

    start: Recipe
    settings: dict[tuple, Recipe]


@dataclass(frozen=True, kw_only=True)
class DiaryRun(Run):
    """`name` and `value` are what the run changed; None in runs of the start."""

    name: str | None
    value: Value | None
    fold: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class DiaryResults(Results):
    command: ClassVar[str] = "python -m study diary"
    what: str = (
        "one hyperparameter changed at a time, errors on validation folds of the training split; "
        "the test split was not used"
    )
    name: str
    recipe: dict[str, Value]  # without the seed, which is the fold's number
    folds: int
    rows: dict[str, DiaryRun] = field(default_factory=dict)


def load_plan(path, base):
    """The Plan in a .toml, for the recipe `base`. InputError where the file or a value is not so.

    The file has a table [start] of what differs from `base` in all runs, and a table [values] of
    hyperparameters, each with a list of values to try. The recipe of `pos_embedding = ["off"]` is the
    start itself.
    """
    tables = read_toml(path)
    start, values = tables.get("start", {}), tables.get("values")
    if not isinstance(start, dict) or not isinstance(values, dict) or not values:
        raise InputError(f"{path}: it needs a table [values] of lines like  depth = [3, 9]")
    base = _changed(path, base, start)
    settings = {}
    for name, tried in values.items():
        for value in tried if isinstance(tried, list) else [tried]:
            if name == POSITIONS:
                if value != "off":
                    raise InputError(f'{path}: {POSITIONS} can only be "off", not {value!r}')
                settings[name, value] = base
            elif getattr(base, name, None) != value:  # else it is the start's own
                settings[name, value] = _changed(path, base, {name: value})
    return Plan(base, settings)


def _changed(path, recipe, values):
    try:
        check_names(values)
        return dataclasses.replace(recipe, **values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def label(name, value):
    return f"{name} = {str(value).lower() if isinstance(value, bool) else value}"


def without_positions(recipe, classes):
    """The recipe's ViT with a position embedding that is zero and stays so."""
    import train

    model = train.make_model(recipe, classes)
    model.pos_embedding.data.zero_()
    model.pos_embedding.requires_grad_(False)
    return model


def run_one(where, recipe, name, value, folds, number):
    """Train a setting on all folds but one and score it on that one: a DiaryRun."""
    import train
    from study import runs  # imports PyTorch

    make_model = without_positions if name == POSITIONS else train.make_model
    run = runs.score_fold(where, recipe, folds, number, make_model)
    return DiaryRun(**vars(run) | {"name": name, "value": value, "fold": number, "seed": recipe.seed})


def work_of(where, plan, folds):
    """{key: call} for results.run_all, fold by fold, so that a part of it is a smaller diary."""
    every = {"start": (None, None, plan.start)}
    every |= {label(*key): (*key, recipe) for key, recipe in plan.settings.items()}
    return {
        f"{text} | fold {number}": partial(
            run_one, where, dataclasses.replace(recipe, seed=number), name, value, folds, number
        )
        for number in range(folds)
        for text, (name, value, recipe) in every.items()
    }


def keep_diary(where, plan, name, folds, output, say=print):
    """Run what the file `output` lacks of a Plan, and say all of it -> lab.findings.Diary.

    name: of the recipe that the plan changes.
    """
    recipe = without_seed(plan.start)
    about = DiaryResults(**where.about(plan.start, folds), name=name, recipe=recipe, folds=folds)
    found = summary(run_study(work_of(where, plan, folds), output, about, say))
    say("\n".join(["", *table_of(found)]))
    return dataclasses.replace(found, fresh=True, file=output.name)


def summary(results):
    """DiaryResults -> lab.findings.Diary: means over the runs that did not fail, and paired differences."""
    groups = means.grouped(results.rows.values(), ("name", "value"), "fold")
    start = groups.pop((None, None), {})
    rows = [
        DiaryRow(
            name=name,
            value=value,
            **means.of(group),
            **means.paired(means.pairs_of(group, start)),
        )
        for (name, value), group in groups.items()
    ]
    start = DiaryStart(images=sum(run.images for run in means.whole(start)), **means.of(start))
    about = results.origin | {"name": results.name, "recipe": results.recipe, "folds": results.folds}
    return Diary(**about, start=start, rows=rows)


def table_of(diary):
    """A Diary as lines for the terminal, accuracies in %."""
    table = [["", *means.CELLS, "difference", "from", "to (95 %)", ""]]
    table.append(["the recipe itself", *means.cells(**vars(diary.start)), "", "", "", ""])
    for row in diary.rows:
        table.append([label(row.name, row.value), *means.cells(**vars(row)), *means.difference_cells(row)])
    return means.aligned(table)
