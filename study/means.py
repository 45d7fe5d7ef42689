"""Means over runs, what their paired differences say, and where they say nothing: Student's t. And tables."""

import math
import statistics


def mean(values):
    """Of the values that are not None; None where none is left."""
    values = [value for value in values if value is not None]
    return float(statistics.mean(values)) if values else None


def grouped(runs, names, pair):
    """{values of the fields `names`: {value of the field `pair`: run}}, in the order of the runs."""
    groups = {}
    for run in runs:
        group = groups.setdefault(tuple(getattr(run, name) for name in names), {})
        group[getattr(run, pair)] = run
    return groups


def whole(group):
    """The runs of a group that did not fail."""
    return [run for run in group.values() if not run.failed]


def of(group):
    """What a table says of one group: its runs, those that failed, and means over the others."""
    runs = whole(group)
    scores = [run.accuracy for run in runs]
    return {
        "runs": len(runs),
        "failed": len(group) - len(runs),
        "accuracy": mean(scores),
        "sd": statistics.stdev(scores) if len(scores) > 1 else None,
        "seconds": mean(run.seconds for run in runs),
    }


def pairs_of(first, second):
    """[(run, run)] of what two groups have in common, without pairs in which a run failed."""
    pairs = [(run, second[key]) for key, run in first.items() if key in second]
    return [pair for pair in pairs if not (pair[0].failed or pair[1].failed)]


def paired(pairs):
    """What a row says of the accuracies of [(run, run)], first minus second: the mean difference, its 95 %
    interval, None where it cannot be determined, and whether that holds zero."""
    differences = [first.accuracy - second.accuracy for first, second in pairs]
    if len(differences) < 2:  # a spread takes two
        return {"difference": mean(differences), "low": None, "high": None, "within_noise": True}
    from scipy.stats import t

    middle, error = mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(t.ppf(0.975, len(differences) - 1)) * error  # 2.5 % on either side
    noise = abs(middle) <= half
    return {"difference": middle, "low": middle - half, "high": middle + half, "within_noise": noise}


def shown(value, form, scale=1):
    """A number for a table, or "-" for None."""
    return "-" if value is None else format(value * scale, form)


CELLS = ["runs", "failed", "accuracy", "sd", "seconds"]


def cells(runs, failed, accuracy, sd, seconds, **more):
    """The cells of these columns, accuracies in %. All that a row of a table holds may be given."""
    scores = shown(accuracy, ".2f", 100), shown(sd, ".2f", 100), shown(seconds, ".0f")
    return [str(runs), str(failed or ""), *scores]


def difference_cells(row):
    """The cells of a row's difference, in percentage points."""
    points = [shown(value, "+.2f", 100) for value in (row.difference, row.low, row.high)]
    return [*points, "within noise" if row.within_noise else ""]


def aligned(rows):
    """Rows of texts as lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:])]
        yield "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()
