"""The ablation diary: from one recipe, one hyperparameter changed at a time, each value trained several
times, on validation folds of the training split. The test split is never looked at.

A run has a fold and the seed of the same number: it trains on all folds but that one and is scored
on it. So the runs of two settings pair by fold and seed, and a pair's difference holds neither the
luck of the images nor that of the first weights. One run for each fold validates each training
image once.
"""

import dataclasses
import math
import statistics

from recipe import InputError, check_names, read_toml
from tune import cached_images, folds_of, train_and_score

# A change that no hyperparameter makes, as vit.py is the paper's: the embedding stays zero.
POSITIONS = "pos_embedding"


def load_diary(path, base):
    """(the recipe to start from, {(name, value): Recipe or None}) of a .toml and the recipe `base`.

    The file has a table [start] of what differs from `base` in all runs, and a table [values] of
    hyperparameters, each with a list of values to try. The Recipe of `pos_embedding = ["off"]` is the
    start itself. InputError where the file or a value is not so.
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
            elif getattr(base, name, None) != value:
                settings[name, value] = _changed(path, base, {name: value})
    return base, settings


def _changed(path, recipe, values):
    try:
        check_names(values)
        return dataclasses.replace(recipe, **values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def label(name, value):
    return f"{name} = {str(value).lower() if isinstance(value, bool) else value}"


def work_of(source, base, settings, folds, fold_seed, threads):
    """{key: (function, arguments)} for tune.run_all, fold by fold, so that a part is a smaller diary."""
    every = {"start": (None, None, base)} | {label(*key): (*key, recipe) for key, recipe in settings.items()}
    return {
        f"{text} | fold {fold}": (
            run_one,
            (source, dataclasses.replace(recipe, seed=fold), name, value, fold, folds, fold_seed, threads),
        )
        for fold in range(folds)
        for text, (name, value, recipe) in every.items()
    }


def run_one(source, recipe, name, value, fold, folds, fold_seed, threads):
    """Train a setting on all folds but one and score it on that one: a JSON-ready row."""
    images = list(folds_of(cached_images(source, recipe), folds, fold_seed))[fold]
    prepare = forget_positions if name == POSITIONS else None
    row = {"name": name, "value": value, "fold": fold, "seed": recipe.seed}
    return row | train_and_score(images, recipe, threads, prepare)


def forget_positions(model):
    """Take the position embedding out of a ViT: it is zero and stays so."""
    model.pos_embedding.data.zero_()
    model.pos_embedding.requires_grad_(False)


def interval(differences, confidence=0.95):
    """The confidence interval of the mean of paired differences, Student's t: (low, high), or None
    from fewer than two."""
    if len(differences) < 2:
        return None
    from scipy.stats import t

    n = len(differences)
    half = t.ppf(0.5 + confidence / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    mean = statistics.mean(differences)
    return mean - float(half), mean + float(half)


def paired(differences):
    """What a summary says of paired differences: their mean, its 95 % interval `low` to `high`, and
    `within_noise`, where that holds zero or can't be had. A figure that can't be had is None."""
    low, high = interval(differences) or (None, None)
    return {
        "difference": statistics.mean(differences) if differences else None,
        "low": low,
        "high": high,
        "within_noise": low is None or low <= 0 <= high,
    }


def summary(record):
    """A diary's table, JSON-ready: what the report shows.

    `start` has the accuracy (0 to 1) of the recipe that all else is compared with, its standard
    deviation over runs, the number of runs, and the images validated on. Each of `rows` is a changed
    value: accuracy, sd, runs, `seconds` a run, and what `paired` says of its differences to the start.
    Failed runs are counted in `failed` alone.
    """
    groups = {}
    for row in record["rows"].values():
        groups.setdefault((row["name"], row["value"]), {})[row["fold"]] = row
    whole = {key: {f: r for f, r in runs.items() if "failed" not in r} for key, runs in groups.items()}

    def figures(key):
        runs = whole[key].values()
        scores = [1 - row["errors"] / row["images"] for row in runs]
        return {
            "runs": len(scores),
            "failed": len(groups[key]) - len(scores),
            "images": sum(row["images"] for row in runs),
            "accuracy": statistics.mean(scores) if scores else None,
            "sd": statistics.stdev(scores) if len(scores) > 1 else None,
            "seconds": statistics.mean(row["seconds"] for row in runs) if scores else None,
        }

    start, rows = whole.get((None, None), {}), []
    for name, value in groups:
        if name is None:
            continue
        pairs = [(start[fold], row) for fold, row in whole[name, value].items() if fold in start]
        differences = [a["errors"] / a["images"] - b["errors"] / b["images"] for a, b in pairs]
        rows.append({"name": name, "value": value} | figures((name, value)) | paired(differences))
    dates = sorted(row["date"] for row in record["rows"].values())
    return {
        "recipe": record["recipe"],
        "name": record["name"],
        "folds": record["folds"],
        "data": record["data"],
        "machine": record["machine"],
        "date": dates[-1],
        "start": figures((None, None)),
        "rows": rows,
    }


def table_of(table):
    """The summary as lines for the terminal, accuracies in %, best first within each hyperparameter."""
    start = table["start"]
    yield f"{'':28} {'runs':>4} {'accuracy':>9} {'sd':>5} {'difference':>11} {'95 % interval':>16} {'s':>5}"
    shown = [("the recipe itself", start)] + [(label(r["name"], r["value"]), r) for r in table["rows"]]
    for text, row in shown:
        if not row["runs"]:
            yield f"{text:28} failed"
            continue
        line = f"{text:28} {row['runs']:4} {100 * row['accuracy']:9.2f} "
        line += f"{'-' if row['sd'] is None else format(100 * row['sd'], '.2f'):>5} "
        if row.get("difference") is not None:
            line += f"{100 * row['difference']:+11.2f} "
            if row["low"] is not None:
                line += f"{100 * row['low']:+8.2f} {100 * row['high']:+7.2f} "
            line += f"{row['seconds']:5.0f}" + ("  within noise" if row["within_noise"] else "")
        else:
            line += f"{row['seconds']:34.0f}"
        yield line + (f"  {row['failed']} failed" if row["failed"] else "")
