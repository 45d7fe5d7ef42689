"""The results of a run from the logits on the test split, and which images the report shows."""

import itertools

import numpy as np

from lab.record import (
    Calibration,
    CalibrationBin,
    ClassScore,
    Prediction,
    Results,
    Sample,
    ShownPrediction,
    Threshold,
)

CALIBRATION_BINS = 10
PRECISIONS = (0.95, 0.99)  # for which a threshold of the confidence is sought, and answers above it:
FEWEST = 20
BASELINE = 0.60  # the assignment's pass mark: at least 60 % test accuracy


def score(logits, labels, classes, files):
    """Results from logits (n, classes) and labels (n), both NumPy; `files` names the n images.

    The interval of the accuracy is Wilson's (1927); `p_value` is that of the exact one-sided binomial test
    of an accuracy no higher than the baseline.
    """
    from scipy.stats import binomtest
    from sklearn.metrics import classification_report, confusion_matrix, log_loss

    numbers = list(range(len(classes)))
    confidences = confidences_of(logits)
    predicted = confidences.argmax(axis=1)
    correct, total = int((predicted == labels).sum()), len(labels)
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    # Keyed by number, not by name: a class may be called "accuracy".
    report = classification_report(labels, predicted, labels=numbers, output_dict=True, zero_division=0.0)
    of_class = {
        name: ClassScore(row["precision"], row["recall"], row["f1-score"], int(row["support"]))
        for name, row in ((name, report[str(i)]) for i, name in enumerate(classes))
    }
    largest = max(of_class, key=lambda name: of_class[name].images)
    predictions = [
        Prediction(file, classes[truth], classes[guess], as_written(row))
        for file, truth, guess, row in zip(files, labels, predicted, confidences)
    ]
    return Results(
        loss=float(log_loss(labels, confidences, labels=numbers)),
        correct=correct,
        total=total,
        accuracy=correct / total,
        interval=(float(interval.low), float(interval.high)),
        baseline=BASELINE,
        passed=correct / total >= BASELINE,
        p_value=float(binomtest(correct, total, BASELINE, alternative="greater").pvalue),
        balanced_accuracy=float(np.mean([row.recall for row in of_class.values() if row.images])),
        macro_f1=float(report["macro avg"]["f1-score"]),
        largest_class=largest,
        largest_share=of_class[largest].images / total,
        confusion_matrix=confusion_matrix(labels, predicted, labels=numbers).tolist(),
        per_class=of_class,
        calibration=measure_calibration(confidences.max(axis=1), predicted == labels),
        predictions=predictions,
        thresholds=find_thresholds(predictions),
    )


def confidences_of(logits):
    """The softmax of logits (n, classes), in float64, so that a loss of 0.0001 still has its digits."""
    from scipy.special import softmax

    return softmax(np.asarray(logits, dtype=np.float64), axis=1)


def as_written(confidences):
    """The confidences of an image as records and tables have them: six digits."""
    return [round(float(c), 6) for c in confidences]


def find_thresholds(predictions):
    """A Threshold of three decimals for each of PRECISIONS, of FEWEST answers or more. They are found on the
    images that they are stated for, so on new ones the precision will be a little lower."""
    ordered = sorted(predictions, key=lambda p: -max(p.confidences))
    # Cut to the decimals of the threshold: those above it are the same.
    confidences = np.floor(np.round([1000 * max(p.confidences) for p in ordered], 6)) / 1000
    precision = np.cumsum([p.predicted == p.true for p in ordered]) / np.arange(1, len(ordered) + 1)
    ends = np.append(confidences[1:] < confidences[:-1], True)  # equal confidences go together
    found = []
    for wanted in PRECISIONS:
        high = np.flatnonzero(ends & (precision >= wanted))
        high = high[high >= FEWEST - 1]
        found.append(Threshold(wanted, float(confidences[high[-1]]) if len(high) else None))
    return found


def measure_calibration(confidences, right, bins=CALIBRATION_BINS):
    """The expected calibration error and the reliability diagram's bins (Guo et al. 2017, equations 2, 3).

    confidences: (n) softmax confidence in the predicted class; right: (n) bool. The bins are of equal
    width, each without its lower and with its upper edge. ECE is the mean of |accuracy - confidence|
    over the bins, weighted by their images.
    """
    confidences, right = np.asarray(confidences, dtype=float), np.asarray(right, dtype=bool)
    # Rounded, so that 0.3 falls into the bin up to 0.3 although 0.3 * 10 is a little more than 3.
    number = np.ceil(np.round(confidences * bins, 9)).astype(int).clip(1, bins) - 1
    rows, error = [], 0.0
    for i in range(bins):
        inside = number == i
        row = CalibrationBin(i / bins, (i + 1) / bins, int(inside.sum()), None, None)
        if row.images:
            row.accuracy, row.confidence = float(right[inside].mean()), float(confidences[inside].mean())
            error += row.images / len(right) * abs(row.accuracy - row.confidence)
        rows.append(row)
    return Calibration(float(error), rows)


def _shown(prediction):
    return ShownPrediction(
        prediction.file, prediction.true, prediction.predicted, max(prediction.confidences)
    )


def choose_mistakes(predictions, count=8):
    """The most confident wrong predictions, worst first."""
    wrong = [p for p in predictions if p.predicted != p.true]
    # The file breaks ties: the same record gives the same pictures.
    return [_shown(p) for p in sorted(wrong, key=lambda p: (-max(p.confidences), p.file))[:count]]


def choose_rollouts(predictions, classes, count=6):
    """Test images to look into: `count` in all, spread evenly over the classes, right ones first."""
    of_class = {name: [p for p in predictions if p.true == name] for name in classes}
    for members in of_class.values():
        members.sort(key=lambda p: p.predicted != p.true)  # stable: by name within
    if len(classes) >= count:
        names = [classes[i * len(classes) // count] for i in range(count)]
        return [_shown(of_class[name][0]) for name in names if of_class[name]]
    rounds = [members[i] for i in range(count) for members in of_class.values() if i < len(members)]
    return sorted((_shown(p) for p in rounds[:count]), key=lambda p: classes.index(p.true))


def choose_samples(files, count=2):
    """The first `count` of each class of "class/name" files, sorted by class."""
    of_class = itertools.groupby(files, lambda file: file.partition("/")[0])
    return [Sample(file, name) for name, some in of_class for file in itertools.islice(some, count)]


def picture_side(pictures):
    """Pixels a side of the report's pictures: finer where they are few, so that the PDF stays small."""
    return max(64, min(240, int((4_500_000 / max(pictures, 1)) ** 0.5)))


def choose_examples(predictions, classes, per_class=4, mistakes=2):
    """Which predictions to show: up to `mistakes` wrong ones a class, most confident first, then right
    ones in the order of their names, `per_class` in all where a class has that many test images."""
    chosen = []
    for name in classes:
        of_class = [p for p in predictions if p.true == name]
        wrong = [p for p in of_class if p.predicted != name]
        right = [p for p in of_class if p.predicted == name]
        wrong.sort(key=lambda p: -max(p.confidences))
        shown = wrong[: max(mistakes, per_class - len(right))]
        shown = right[: per_class - min(len(shown), per_class)] + shown[:per_class]
        chosen += [_shown(p) for p in shown]
    return chosen
