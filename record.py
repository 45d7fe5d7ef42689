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

SCHEMA = 1
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
        chosen += [
            {
                "file": p["file"],
                "true": p["true"],
                "predicted": p["predicted"],
                "confidence": max(p["confidences"]),
            }
            for p in shown
        ]
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
