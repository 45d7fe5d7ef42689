"""What studies found, for the report: the ablation diary, the ViT beside CNNs, the search for a recipe.

A study of one's own is fresh. In place of one that was not made the report shows what study/recorded/
holds of NEU-CLS, and of X-SDD to tell what carries over, as recorded: with its date and machine, never as a
result of the run.
"""

import contextlib
import dataclasses
from pathlib import Path

from lab.errors import InputError
from lab.files import take_lock
from lab.findings import Findings
from lab.options import FRESH
from lab.record import NamedRecipe
from study import compare
from study import diary as diaries
from study.results import read_results

STUDIES = Path(__file__).parent / "recorded"
DIARY_PLAN = STUDIES / "diary.toml"

# A search or diary within a run has trials of this schedule, or of the recipe's own if that is shorter.
SHORT = {"epochs": 12, "warmup_epochs": 1.0}
COMPARED_EPOCHS = 20
FOLDS = 4
SHARES, SEEDS = (100, 50, 25, 10), (0, 1, 2)  # percent of the training split


def load_findings(diary_path=None, comparison_path=None):
    """The Findings of results files, of recorded ones where None is given. InputError if they hold none."""

    def load(module, kind, path, recorded):
        file = Path(path or STUDIES / recorded)
        results = read_results(file, kind)
        found = module.summary(results) if results.rows else None
        told = "difference" if module is diaries else "accuracy"
        if not found or all(getattr(row, told) is None for row in found.rows):
            raise InputError(f"{file} has no finished runs to show yet: {kind.command} goes on with it")
        return dataclasses.replace(found, fresh=path is not None, file=file.name)

    return Findings(
        diary=load(diaries, diaries.DiaryResults, diary_path, "neu-cls-diary.json"),
        comparison=load(compare, compare.ComparisonResults, comparison_path, "neu-cls-compare.json"),
        elsewhere=load(compare, compare.ComparisonResults, None, "x-sdd-compare.json"),
        longer=load(compare, compare.ComparisonResults, None, "x-sdd-compare-full.json"),
    )


def new_start(options, precision, screen):
    """The lab.checkpoint.Start of a new run: its recipe, the best one found if a search is asked for, and the
    studies that its report shows."""
    from lab.checkpoint import Start  # imports PyTorch

    with screen.stage("Studies") if options.makes_studies else contextlib.nullcontext():
        recipe, found = make_studies(options, precision, screen.say)
    searched = found.search is not None
    name = "search" if searched and found.search.best.changed else options.recipe_name
    free = () if searched else options.free  # what was found stands
    return Start(NamedRecipe(name, recipe), found, precision, options.name, options.choices, sorted(free))


def make_studies(options, precision, say):
    """Make the studies that are asked for, in a folder beside the bundle's, going on with what lies there
    -> (recipe, Findings). The recipe is the best one found where a search was made. InputError also where
    another run is at it.
    """
    # Files that cannot be read and a budget that is none are found before any work.
    found = load_findings(*(None if path == FRESH else path for path in (options.diary, options.compare)))
    recipe, folder = options.recipe, options.folder.with_name(f"{options.student_id}-studies")
    if not options.makes_studies:
        return recipe, found
    if options.study:
        from study.search import parse_budget  # imports Optuna

        budget = parse_budget(options.budget or "10m")
    from lab.intake import default_source
    from lab.machine import choose_device, usable_cores  # imports PyTorch
    from study.runs import Where, fit

    source, device = options.data or default_source() or "demo", options.device
    jobs = 1 if choose_device(device).type == "cuda" else min(4, usable_cores())
    where = Where(source, device, precision, options.limits, jobs, options.choices)
    with take_lock(folder / "lock", f"another run makes studies in {folder}: wait for it"):
        recipe = fit(where, recipe, options.free)
        if options.study:
            recipe, found.search = _search(folder, where, recipe, options.settings, budget, say)
        if options.diary == FRESH:
            say("ablation diary: Ctrl-C stops it, and the same command goes on")
            plan, output = diaries.load_plan(DIARY_PLAN, recipe), folder / "diary.json"
            found.diary = diaries.keep_diary(where, plan, "run", FOLDS, output, say)
        if options.compare == FRESH:
            say("ViT beside a CNN: Ctrl-C stops it, and the same command goes on")
            short = dataclasses.replace(recipe, epochs=min(recipe.epochs, COMPARED_EPOCHS))
            networks, output = ("vit", "cnn"), folder / "comparison.json"
            tuned = compare.tune(where, short, networks, folder / "comparison-tuning.json", say)
            found.comparison = compare.compare(
                where, short, SEEDS, SHARES, networks, output, say, equals=compare.EQUALS, tuned=tuned
            )
    return recipe, found


def _search(folder, where, recipe, settings, budget, say):
    """Search with a short schedule -> (the best recipe with the run's schedule and seeds, Search)."""
    from study import search

    say("search for a recipe: Ctrl-C stops it, and the same command goes on")
    short = {name: value for name, value in SHORT.items() if value < getattr(recipe, name)}
    base, fixed = dataclasses.replace(recipe, **short), {name for name, _ in settings} | {*short}
    one = dataclasses.replace(where, jobs=1)  # this process has all cores
    found = search.search(one, base, fixed, FOLDS, 0, budget, folder / "search.json", say=say)
    own = {name: getattr(recipe, name) for name in short}
    return dataclasses.replace(search.found_recipe(found), **own), found
