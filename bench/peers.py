#!/usr/bin/env python3
"""Test accuracy in the same time: our whole command beside the trainers that people would pick.

    pip install -r bench/requirements-peers.txt
    git clone https://github.com/huggingface/pytorch-image-models
    python bench/peers.py --data neu-cls.zip --timm pytorch-image-models --output peers.json

Ours goes first: `run.py` with the default recipe, from command to verified bundle. The others train from
scratch on its split (run/dataset_split), each in that wall time and again in three times as much, their start
and their own scoring included, as ours are:

  yolo        ultralytics: yolo classify train, yolo11n-cls, 224 px, its defaults, `time` set
  vit_tiny    timm's train.py: vit_tiny_patch16_224, AdamW 1e-3, weight decay 0.05, bfloat16 where ours has it
  resnet18    timm's train.py: resnet18, the same values
  assignment  assignment_way.py: the example report's values

timm and the assignment's way know epochs and no time: two short runs tell how long an epoch takes, and the
number of epochs comes nearest to the time. Scores are those of the last epoch. One run each: differences of a
few images are noise.
"""

import argparse
import csv
import dataclasses
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from lab.errors import InputError  # noqa: E402
from lab.machine import choose_device, choose_precision  # noqa: E402
from study.means import aligned  # noqa: E402
from study.results import Results, Run, open_results, run_all  # noqa: E402
from study.runs import Where  # noqa: E402

TIMES = (1, 3)  # multiples of the time of our command
TIMM = {"vit_tiny": "vit_tiny_patch16_224", "resnet18": "resnet18"}
PACKAGES = ("torch", "timm", "ultralytics", "vit-pytorch")


@dataclass(frozen=True, kw_only=True)
class PeerRun(Run):
    """`budget`: the wall time that it was given; `seconds`: what it took, start and scoring included."""

    peer: str
    budget: float | None = None
    epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class PeerResults(Results):
    command: ClassVar[str] = "bench/peers.py"
    what: str = (
        "test accuracy of trainers from scratch, in the time of our whole command and three times that"
    )
    images_of: str
    versions: dict[str, str]
    rows: dict[str, PeerRun] = field(default_factory=dict)


def run_command(command, folder):
    """Run a command in a folder -> the seconds it took. RuntimeError with the end of what it said."""
    start = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"YOLO_OFFLINE": "true", "WANDB_MODE": "disabled"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[1]} ended with exit code {done.returncode}: {done.stdout[-1500:]}")
    return time.perf_counter() - start


def last_row(path):
    """The last row of a CSV with a header: {column: text}."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name.strip(): text for name, text in row.items()} for row in csv.DictReader(file)][-1]


@functools.lru_cache  # one process runs all rows: a peer is tried once, for both of its times
def tried(name, script, split):
    """(seconds of the start, seconds of an epoch), from two short runs."""
    train, _ = trainer_of(name, script)
    few, more = (1, 3) if name in TIMM else (2, 12)  # at 28 pixels an epoch is short
    times = []
    for epochs in (few, more):
        with tempfile.TemporaryDirectory() as folder:
            times.append(train(split, epochs, Path(folder)))
    epoch = (times[1] - times[0]) / (more - few)
    if epoch <= 0:
        raise RuntimeError(f"{name}: {more} epochs took {times[1]:.0f} s, {few} took {times[0]:.0f} s")
    return times[0] - few * epoch, epoch


def train_ours(data, folder):
    """Our command -> (its PeerRun, its split)."""
    seconds = run_command(
        [sys.executable, ROOT / "run.py", "--student-id", "peers", "--data", data, "--quiet"], folder
    )
    run = folder / "outputs" / "peers" / "run"
    results = json.loads((run / "record.json").read_text())["results"]
    errors = results["total"] - results["correct"]
    ours = PeerRun(peer="ours", seconds=seconds, images=results["total"], errors=errors)
    return ours, run / "dataset_split"


def train_yolo(split, budget, folder):
    """-> (seconds, accuracy, epochs)."""
    command = [Path(sys.executable).with_name("yolo"), "classify", "train", "model=yolo11n-cls.yaml"]
    command += [f"data={split}", "imgsz=224", "pretrained=False", "plots=False", f"time={budget / 3600:.5f}"]
    command += [f"device={choose_device().type}", f"project={folder}", "name=run"]
    seconds = run_command(command, folder)
    row = last_row(folder / "run" / "results.csv")
    return seconds, float(row["metrics/accuracy_top1"]), int(row["epoch"])


def by_epochs(name, script, split, budget, folder):
    """Train what knows epochs and no time -> (seconds, accuracy, epochs)."""
    train, read = trainer_of(name, script)
    start, epoch = tried(name, script, split)
    epochs = max(1, round((budget - start) / epoch))
    return train(split, epochs, folder), read(folder), epochs


def trainer_of(name, script):
    """((split, epochs, folder) -> seconds, folder -> accuracy)"""
    if name in TIMM:
        return partial(timm_epochs, script, name), timm_accuracy
    return assignment_epochs, assignment_accuracy


def timm_epochs(script, name, split, epochs, folder):
    """Train with timm's script -> seconds."""
    device, classes = choose_device(), len(list((split / "train").iterdir()))
    command = [sys.executable, script, "--data-dir", split, "--train-split", "train", "--val-split", "test"]
    command += ["--model", TIMM[name], "--num-classes", classes, "--input-size", "3", "224", "224"]
    command += ["--opt", "adamw", "--lr", "1e-3", "--weight-decay", "0.05", "--batch-size", "64"]
    command += ["--epochs", epochs, "--warmup-epochs", min(5, epochs // 4), "--device", device.type]
    if choose_precision("auto", device) == "bf16":
        command += ["--amp", "--amp-dtype", "bfloat16"]
    command += ["--workers", min(4, os.cpu_count() or 1), "--output", folder, "--experiment", "run"]
    return run_command(command, folder)


def timm_accuracy(folder):
    return float(last_row(folder / "run" / "summary.csv")["eval_top1"]) / 100


def assignment_epochs(split, epochs, folder):
    """The assignment's own way in a process of its own -> seconds."""
    return run_command([sys.executable, __file__, "--assignment", split, "--epochs", epochs], folder)


def assignment(split, epochs):
    """The assignment's own way for so many epochs: its test accuracy goes to accuracy.txt here."""
    import assignment_way

    from lab.recipe import load_recipe

    recipe = load_recipe("example", [("epochs", epochs)])
    *_, last = assignment_way.fit(split, recipe, choose_device(), min(4, os.cpu_count() or 1))
    Path("accuracy.txt").write_text(str(last[-1]), encoding="utf-8")


def assignment_accuracy(folder):
    return float((folder / "accuracy.txt").read_text())


def one_peer(name, train, split, images, budget):
    try:
        with tempfile.TemporaryDirectory() as folder:
            seconds, accuracy, epochs = train(split, budget, Path(folder))
    except (RuntimeError, OSError) as error:
        return PeerRun(peer=name, budget=budget, failed=str(error))
    errors = round(images * (1 - accuracy))
    return PeerRun(peer=name, budget=budget, images=images, errors=errors, seconds=seconds, epochs=epochs)


def version_of(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{package} is missing: pip install -r bench/requirements-peers.txt") from None


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", metavar="PATH", help="a zip or folder, as for run.py")
    parser.add_argument("--timm", type=Path, metavar="FOLDER", help="a clone of pytorch-image-models")
    parser.add_argument("--output", type=Path, metavar="JSON", help="goes on from there")
    parser.add_argument("--assignment", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.assignment and not (args.data and args.timm and args.output):
        parser.error("--data, --timm and --output are needed")
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.assignment:
        return assignment(args.assignment, args.epochs)
    script = args.timm.resolve() / "train.py"
    peers = {"yolo": train_yolo}
    peers |= {name: partial(by_epochs, name, script) for name in (*TIMM, "assignment")}
    try:
        if not script.is_file():
            raise InputError(f"{script} is missing: --timm is a clone of pytorch-image-models")
        versions = {name: version_of(name) for name in PACKAGES}
        about = PeerResults(
            machine=Where("").machine(), jobs=1, images_of=Path(args.data).name, versions=versions
        )
        results, rows = open_results(args.output, about), {}
        with tempfile.TemporaryDirectory() as folder:
            # Its split is needed, so it runs each time; what is kept is its first time.
            ours, split = train_ours(Path(args.data).resolve(), Path(folder))
            ours = results.rows.get("ours", ours)
            work = {"ours": partial(dataclasses.replace, ours)}
            work |= {
                f"{name} | {times} x": partial(
                    one_peer, name, train, split, ours.images, times * ours.seconds
                )
                for times in TIMES
                for name, train in peers.items()
            }
            for key, row, so_far in run_all(work, args.output, results):
                rows[key] = row
                shown = row.failed or f"{row.accuracy:.2%} in {row.seconds:.0f} s"
                print(f"{so_far}  {key}: {shown}", flush=True)
    except (InputError, RuntimeError) as error:
        print(f"peers.py: {error}", file=sys.stderr)
        return 2
    show(rows)
    return 0


def show(rows):
    table = [["trainer", "time given", "s", "epochs", "test accuracy"]]
    for key, row in rows.items():
        accuracy = "failed" if row.failed else f"{row.accuracy:.2%}"
        cells = "" if row.seconds is None else f"{row.seconds:.0f}", str(row.epochs or "")
        table.append([row.peer, key.partition(" | ")[2], *cells, accuracy])
    print("", *aligned(table), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
