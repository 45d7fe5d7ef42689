"""What studies found, for the report: the ablation diary, the ViT beside CNNs, the search for a recipe.

A study of one's own is fresh. In place of one that was not made the report shows what studies/ holds of
NEU-CLS, as recorded: with its date and machine, never as a result of the run.
"""

import dataclasses
import json
import os
from importlib import import_module
from pathlib import Path

from bundle import take_lock
from recipe import InputError, load_recipe

STUDIES = Path(__file__).parent / "studies"
RECORDED = {"diary": STUDIES / "neu-cls-diary.json", "comparison": STUDIES / "neu-cls-compare.json"}
# kind: the module whose `summary` reads it, the command that writes it
KINDS = {
    "search": ("search", "tune.py --budget"),
    "diary": ("diary", "tune.py --diary"),
    "comparison": ("compare", "compare.py"),
}
FRESH = "fresh"  # in place of a file: make the study now

# A search or diary within a run has trials of this schedule, or of the recipe's own if that is shorter.
SHORT = {"epochs": 15, "warmup_epochs": 2.0}
COMPARED_EPOCHS = 40


def _summary(kind, path):
    module, command = KINDS[kind]
    summary = import_module(module).summary  # of the one that is asked for: Optuna only for a search
    try:
        return summary(json.loads(Path(path).read_text("utf-8")))
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise InputError(f"{path} holds no results of {command}") from None


def load_findings(diary=None, comparison=None, search=None):
    """{kind: summary or None} of results files, of recorded ones where None is given.

    A summary is that of diary.py, compare.py or search.py with `fresh`, whether it is the user's own,
    and `file`, the name of its file. InputError where a file holds something else.
    """
    found = {}
    for kind, path in {"search": search, "diary": diary, "comparison": comparison}.items():
        fresh, found[kind] = path is not None, None
        path = path if fresh else RECORDED.get(kind)
        if fresh or (path and path.is_file()):
            found[kind] = _summary(kind, path) | {"fresh": fresh, "file": Path(path).name}
    return found


def make_studies(folder, source, recipe, settings, *, budget, diary, comparison, say):
    """Make the studies that are asked for, in `folder`, going on with what lies there.

    source: zip or folder; recipe: the run's; settings: (name, value) pairs of it that a search keeps;
    budget: of the search, or None for none; diary, comparison: FRESH, a results file, or None.
    -> (recipe, findings); the recipe is the best one found where a search was made. InputError also where
    another run is at it.
    """
    recorded = load_findings(*(None if path == FRESH else path for path in (diary, comparison)))
    if not (budget or FRESH in (diary, comparison)):
        return recipe, recorded
    if budget:
        import search

        search.parse_budget(budget)
    lock = take_lock(folder, f"another run makes studies in {folder}: wait for it")
    try:
        return _make(folder, source, recipe, settings, budget, diary, comparison, say)
    finally:
        lock.release()


def _make(folder, source, recipe, settings, budget, diary, comparison, say):
    import compare as cnns
    import tune
    from record import write_whole  # imports NumPy: --help need not wait for it
    from train import choose_device

    start = folder / "recipe.toml"
    write_whole(start, recipe.as_toml())
    where = ["--data", str(source), "--recipe", str(start)]
    jobs = ["--jobs", str(1 if choose_device().type == "cuda" else min(4, os.cpu_count() or 1))]
    searched = None
    if budget:
        searched = folder / "search.json"
        short = {name: value for name, value in SHORT.items() if value < getattr(recipe, name)}
        kept = [f"--set={name}={json.dumps(value)}" for name, value in [*settings, *short.items()]]
        say(f"search for a recipe, {budget}: Ctrl-C stops it, and the same command goes on")
        args = [*where, *kept, "--budget", budget, "--output", str(searched)]
        tune.search_recipe(tune.parse_args(args), say)
        own = {name: getattr(recipe, name) for name in [*short, "seed", "split_seed"]}
        recipe = dataclasses.replace(load_recipe(searched.with_suffix(".toml")), **own)
        write_whole(start, recipe.as_toml())
    if diary == FRESH:
        diary = folder / "diary.json"
        say("ablation diary: Ctrl-C stops it, and the same command goes on")
        args = [*where, "--diary", str(STUDIES / "diary.toml"), "--output", str(diary), *jobs]
        tune.keep_diary(tune.parse_args(args), say)
    if comparison == FRESH:
        comparison = folder / "comparison.json"
        say("ViT beside a CNN: Ctrl-C stops it, and the same command goes on")
        epochs = str(min(recipe.epochs, COMPARED_EPOCHS))
        args = [*where, "--models", "vit", "cnn", "--shares", "100", "50", "25", "10", "--epochs", epochs]
        cnns.compare(cnns.parse_args([*args, "--output", str(comparison), *jobs]), say)
    return recipe, load_findings(diary, comparison, searched)
