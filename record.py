"""The run record: everything the report may say, written once as JSON (and CSV for spreadsheets)."""

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

SCHEMA = 3
CALIBRATION_BINS = 10
BASELINE = 0.60  # the assignment's pass mark: at least 60 % test accuracy
PACKAGES = (
    "torch",
    "torchvision",
    "einops",
    "torchinfo",
    "scikit-learn",
    "matplotlib",
    "weasyprint",
)


def write_whole(path, content):
    """Write bytes or text to `path` whole or not at all: a temporary name beside it, then a rename."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_record(path, record):
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path, header, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_whole(path, text.getvalue())


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def describe_machine(device):
    """Where a run takes place: system, processor, device, threads and package versions."""
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    processor = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def describe_model(model):
    """The model as torchinfo prints it (two levels, as in the assignment), and its parameters."""
    import torchinfo

    summary = torchinfo.summary(model, depth=2, verbose=0)
    return {
        "parameters": summary.total_params,
        "trainable": summary.trainable_params,
        "summary": str(summary),
        "printed": str(model),
    }


def score(logits, labels, classes, files):
    """Results on the test split from logits (n, classes) and labels (n), both NumPy, JSON-ready.

    The confusion matrix has true classes as rows. The interval of the accuracy is Wilson's (1927).
    """
    from scipy.special import softmax
    from scipy.stats import binomtest
    from sklearn.metrics import classification_report, confusion_matrix, log_loss

    numbers = list(range(len(classes)))
    confidences = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    predicted = confidences.argmax(axis=1)
    correct, total = int((predicted == labels).sum()), len(labels)
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    # Keyed by number, not by name: a class may be called "accuracy".
    report = classification_report(labels, predicted, labels=numbers, output_dict=True, zero_division=0.0)
    per_class = {
        name: {
            "precision": report[str(i)]["precision"],
            "recall": report[str(i)]["recall"],
            "f1": report[str(i)]["f1-score"],
            "images": int(report[str(i)]["support"]),
        }
        for i, name in enumerate(classes)
    }
    return {
        "loss": float(log_loss(labels, confidences, labels=numbers)),
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "interval": [float(interval.low), float(interval.high)],
        "baseline": BASELINE,
        "passed": correct / total >= BASELINE,
        "macro_f1": float(report["macro avg"]["f1-score"]),
        "confusion_matrix": confusion_matrix(labels, predicted, labels=numbers).tolist(),
        "per_class": per_class,
        "calibration": calibrate(confidences.max(axis=1), predicted == labels),
        "predictions": [
            {
                "file": file,
                "true": classes[truth],
                "predicted": classes[guess],
                "confidences": [round(float(c), 6) for c in row],
            }
            for file, truth, guess, row in zip(files, labels, predicted, confidences)
        ],
    }


def calibrate(confidences, right, bins=CALIBRATION_BINS):
    """Expected calibration error and the reliability diagram's bins (Guo et al. 2017, equations 2 and 3).

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
        count = int(inside.sum())
        row = {"low": i / bins, "high": (i + 1) / bins, "images": count, "accuracy": None, "confidence": None}
        if count:
            row["accuracy"], row["confidence"] = (
                float(right[inside].mean()),
                float(confidences[inside].mean()),
            )
            error += count / len(right) * abs(row["accuracy"] - row["confidence"])
        rows.append(row)
    return {"ece": float(error), "bins": rows}


def _shown(prediction):
    """A prediction as the report shows it."""
    return {
        "file": prediction["file"],
        "true": prediction["true"],
        "predicted": prediction["predicted"],
        "confidence": max(prediction["confidences"]),
    }


def choose_mistakes(predictions, count=8):
    """The most confident wrong predictions, worst first."""
    wrong = [p for p in predictions if p["predicted"] != p["true"]]
    return [_shown(p) for p in sorted(wrong, key=lambda p: (-max(p["confidences"]), p["file"]))[:count]]


def choose_rollouts(predictions, classes, count=6):
    """Test images to look into: `count` in all, spread evenly over the classes, right ones first."""
    of_class = {name: [p for p in predictions if p["true"] == name] for name in classes}
    for members in of_class.values():
        members.sort(key=lambda p: p["predicted"] != p["true"])  # stable: by name within
    if len(classes) >= count:
        names = [classes[i * len(classes) // count] for i in range(count)]
        return [_shown(of_class[name][0]) for name in names if of_class[name]]
    rounds = [members[i] for i in range(count) for members in of_class.values() if i < len(members)]
    return sorted((_shown(p) for p in rounds[:count]), key=lambda p: classes.index(p["true"]))


def choose_samples(files, count=2):
    """The first `count` of "class/name" files of each class, as {"file", "true"}."""
    chosen = {}
    for file in files:
        name = file.partition("/")[0]
        if len(chosen.setdefault(name, [])) < count:
            chosen[name].append({"file": file, "true": name})
    return [sample for samples in chosen.values() for sample in samples]


def picture_side(pictures):
    """Pixels a side of the report's pictures: finer where they are few, so that the PDF stays small."""
    return max(64, min(240, int((4_500_000 / max(pictures, 1)) ** 0.5)))


def choose_examples(predictions, classes, per_class=4, mistakes=2):
    """Which predictions to show: up to `mistakes` wrong ones a class, most confident first, then right
    ones in the order of their names, `per_class` in all where a class has that many test images."""
    chosen = []
    for name in classes:
        of_class = [p for p in predictions if p["true"] == name]
        wrong = [p for p in of_class if p["predicted"] != name]
        right = [p for p in of_class if p["predicted"] == name]
        wrong.sort(key=lambda p: -max(p["confidences"]))
        shown = wrong[: max(mistakes, per_class - len(right))]
        shown = right[: per_class - min(len(shown), per_class)] + shown[:per_class]
        chosen += [_shown(p) for p in shown]
    return chosen


def write_tables(folder, record):
    """history.csv, predictions.csv and confusion_matrix.csv beside the record, from the record."""
    classes, history = record["data"]["classes"], record["training"]["history"]
    results = record["results"]
    write_csv(folder / "history.csv", list(history[0]), [list(row.values()) for row in history])
    write_csv(
        folder / "predictions.csv",
        ["file", "true", "predicted", *(f"confidence {name}" for name in classes)],
        [[p["file"], p["true"], p["predicted"], *p["confidences"]] for p in results["predictions"]],
    )
    write_csv(
        folder / "confusion_matrix.csv",
        ["true \\ predicted", *classes],
        [[name, *row] for name, row in zip(classes, results["confusion_matrix"])],
    )
