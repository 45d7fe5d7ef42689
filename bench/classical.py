#!/usr/bin/env python3
"""A support vector machine and a random forest on the pixels, beside bench/datasets.py on the same splits.

    python bench/classical.py FOLDER/cells FOLDER/signs --output x.json

scikit-learn's, on pictures made SIDE x SIDE, split seed 42. C and gamma of the support vector machine are
chosen on three folds of the training split; the forest has 500 trees and seed 0. Results are kept as they
come, and the command goes on where it stopped.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parent.parent))

import lab  # noqa: F401, I001 (first: it says which packages are missing)
import numpy as np
import torch.nn.functional as F
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import datasets
from lab.errors import InputError
from study import runs
from study.means import aligned
from study.results import Results, Run, open_results, run_all

SIDE = 60


@dataclass(frozen=True, kw_only=True)
class ClassicalRun(Run):
    """`seconds`: of choosing C and gamma and of training, on one core. `chosen`: these values."""

    data: str
    classifier: str
    macro_f1: float | None = None
    chosen: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClassicalResults(Results):
    command: ClassVar[str] = "bench/classical.py"
    what: str = "test accuracy of classifiers on the pixels"
    rows: dict[str, ClassicalRun] = field(default_factory=dict)


def support_vectors(features):
    width = 1 / (features.shape[1] * features.var())  # scikit-learn's gamma = "scale"
    grid = {"C": [1.0, 10.0, 100.0], "gamma": [0.3 * width, width, 3 * width]}
    return GridSearchCV(SVC(), grid, cv=3)


CLASSIFIERS = {
    "support vector machine": support_vectors,
    "random forest": lambda features: RandomForestClassifier(500, random_state=0),
}


@lru_cache(maxsize=1)
def features_of(path):
    """(features (n, d), labels (n)) of the training and of the test split, NumPy."""
    images = datasets.load(path)

    def pixels(split):
        small = [
            F.interpolate(split.pixels[row][None].float(), (SIDE, SIDE), mode="area") for row in split.rows
        ]
        return [(image.flatten() / 255).numpy() for image in small]

    return [(np.stack(pixels(split)), split.labels.numpy()) for split in (images.train, images.test)]


def one_run(path, name, classifier):
    (features, labels), (test, truth) = features_of(path)
    start = time.perf_counter()
    fitted = CLASSIFIERS[classifier](features).fit(features, labels)
    seconds, answers = time.perf_counter() - start, fitted.predict(test)
    return ClassicalRun(
        data=name,
        classifier=classifier,
        errors=int((answers != truth).sum()),
        images=len(truth),
        macro_f1=float(f1_score(truth, answers, average="macro")),
        seconds=seconds,
        chosen={key: float(value) for key, value in getattr(fitted, "best_params_", {}).items()},
    )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data", nargs="+", metavar="PATH", help="zip or folder as for run.py, or demo")
    parser.add_argument("--output", required=True, type=Path, metavar="JSON", help="goes on from there")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    args = parser.parse_args(argv)
    work, rows = {}, []
    for path in args.data:
        for classifier in CLASSIFIERS:
            name = Path(path).name
            work[f"{name} | {classifier}"] = partial(one_run, path, name, classifier)
    try:
        about = ClassicalResults(machine=runs.Where("", jobs=args.jobs).machine(), jobs=args.jobs)
        for key, row, so_far in run_all(work, args.output, open_results(args.output, about)):
            rows.append(row)
            print(f"{so_far}  {key}: {row.accuracy:.2%}, {row.seconds:.0f} s", flush=True)
    except (InputError, ValueError) as error:
        print(f"classical.py: {error}", file=sys.stderr)
        return 2
    table = [["data", "classifier", "test", "accuracy", "macro-F1", "seconds"]]
    for row in rows:
        scores = f"{100 * row.accuracy:.2f}", f"{row.macro_f1:.3f}", f"{row.seconds:.0f}"
        table.append([row.data, row.classifier, str(row.images), *scores])
    print("", *aligned(table), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
