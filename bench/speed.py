#!/usr/bin/env python3
"""How fast: ours beside the assignment's own way, in one run on one machine.

    python bench/speed.py --data neu-cls.zip --output speed.json    all of it: 25 min on 2 cores
    python bench/speed.py --data neu-cls.zip --output x.json --parts rate limit

The assignment's own way is assignment_way.py: files opened anew each epoch by DataLoader workers,
float32, the public package's ViT. Each measurement runs in a process of its own, so that its peak
memory is its own.

  rate      training images a second at the example report's sizes; both ways in turn, three times each
  accuracy  seconds of training to reach a test accuracy: both ways at the example's values, and our default
  bundle    the whole command, data to bundle: seconds and peak memory
  growth    images a second and memory as the data and the image size grow, and with the pixels on disk
  limit     matrix products a second on this machine, and the share of them that training reaches
  predict   new pictures a second, and memory, for few and for many
  gpu       on a CUDA device alone: seconds of training and images a second of our recipes, the default one in
            fp16 too, beside the assignment's way; the share of the card's matrix rate
"""

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import lab  # noqa: E402, F401  says which packages are missing

MARKS = (0.8056, 0.85, 0.93, 0.97)  # the example report's accuracy, and three above it


# Measurements: each is called in a process of its own and returns a JSON-ready value


def peer_epochs(source, epochs):
    """{"images": training images, "rows": [training seconds, seconds so far, test accuracy] of each
    epoch}, the assignment's own way."""
    import assignment_way

    from lab.intake import open_source, read_images
    from lab.machine import choose_device
    from lab.recipe import load_recipe

    recipe = load_recipe("example", [("epochs", epochs)])
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "dataset_split"
        images = read_images(open_source(source, Path(folder)), recipe, split)
        fitted = assignment_way.fit(split, recipe, choose_device(), min(4, os.cpu_count() or 1))
        return {"images": len(images.train), "rows": [row[1:] for row in fitted]}


def our_setup(train_split, test_split, recipe, precision="auto"):
    """The lab.training.Setup of a training here, as run.py has it."""
    from lab.machine import choose_device, choose_precision
    from lab.training import prepare

    device = choose_device()
    return prepare(train_split, test_split, recipe, device, choose_precision(precision, device))


def our_epochs(source, name, epochs=None, precision="auto"):
    """The same, our way, with a named recipe; `images`: those that an epoch shows."""
    from lab.intake import load_images
    from lab.recipe import free_names, load_recipe
    from lab.training import epochs as trained

    settings = [("epochs", epochs)] if epochs else []
    images = load_images(source, load_recipe(name, settings), free=free_names(name, settings))
    recipe = images.fit.recipe
    setup = our_setup(images.train, images.test, recipe, precision)
    begin, rows = time.perf_counter(), []
    for epoch in trained(setup, recipe):
        accuracy = epoch.correct / len(images.test)
        rows.append([epoch.train_seconds, time.perf_counter() - begin, accuracy])
    return {"images": len(setup.train_loader.dataset), "rows": rows, "precision": setup.precision}


def grown(count, side, on_disk=False):
    """Training images a second on `count` images of side x side pixels, the default recipe otherwise."""
    import numpy as np
    import torch

    from data import Split
    from lab import machine
    from lab.recipe import load_recipe
    from lab.training import epochs

    patch = {28: 4, 64: 8, 96: 12, 128: 16, 160: 16, 224: 16}[side]
    # The first epoch warms up, where it does not take long.
    values = [("image_size", side), ("patch_size", patch), ("epochs", 2 if count < 10_000 else 1)]
    recipe = load_recipe("default", values)
    if on_disk:
        machine.memory_size = lambda: 0
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as folder:
        pixels = machine.pixel_store(folder)((count, 1, side, side), np.uint8)
        for start in range(0, count, 1000):
            part = pixels[start : start + 1000]
            part[:] = torch.randint(0, 256, part.shape, dtype=torch.uint8).numpy()
        rows = torch.arange(count)
        split, one = (
            Split(torch.from_numpy(pixels), r, r % 6, list("abcdef"), [""] * len(r), [""] * len(r))
            for r in (rows, rows[:1])
        )
        *_, last = epochs(our_setup(split, one, recipe), recipe)
    return {"images_per_second": count / last.train_seconds}


def limits():
    """Matrix products in 1e9 operations a second, and what one training image costs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import train
    from lab.machine import choose_device
    from lab.recipe import load_recipe

    device = choose_device()

    def rate(dtype, rows, inner, columns):
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(inner, columns, device=device).to(dtype)
        best = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(10):
                a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - start) / 10)
        return 2 * rows * inner * columns / best / 1e9

    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        found[f"{dtype} 2048 x 2048 x 2048"] = rate(dtype, 2048, 2048, 2048)
        found[f"{dtype} 4096 x 128 x 384"] = rate(dtype, 4096, 128, 384)
    for name in ("example", "default", "best"):
        recipe = load_recipe(name)
        model = train.make_model(recipe, 6)
        with FlopCounterMode(display=False) as counter:
            shape = (1, recipe.channels, recipe.image_size, recipe.image_size)
            model(torch.zeros(shape)).sum().backward()
        found[f"operations for one training image, {name}"] = counter.get_total_flops()
    return found


def predicted(count):
    """Seconds and memory of --predict on so many pictures: demonstration images, again and again."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        command = [sys.executable, ROOT / "run.py", "--student-id", "bench", "--quiet"]
        made = [*command, "--data", "demo", "--set", "epochs=1", "--set", "repeats=1", "--no-verify"]
        subprocess.run(made, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        images = [p for p in (folder / "outputs/bench/run/dataset_split").rglob("*.*") if p.suffix != ".json"]
        (folder / "new").mkdir()
        for number in range(count):
            os.link(os.path.realpath(images[number % len(images)]), folder / "new" / f"{number}.png")
        start = time.perf_counter()
        asked = [*command, "--predict", "new"]
        process = subprocess.Popen(list(map(str, asked)), cwd=folder, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"--predict ended with {os.waitstatus_to_exitcode(status)}")
        return {"seconds": time.perf_counter() - start, "mb": usage.ru_maxrss / 1024}


def bundle(source):
    """Seconds and test accuracy of the whole command with the default recipe."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "run.py", "--student-id", "bench", "--data", Path(source).resolve()]
        start = time.perf_counter()
        subprocess.run([*command, "--quiet"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        record = json.loads((Path(folder) / "outputs" / "bench" / "run" / "record.json").read_text())
    return {"seconds": seconds, "accuracy": record["results"]["accuracy"], "stages": record["stages"]}


# The command


def alone(function, *args):
    """The value of a measurement run in a process of its own, and its peak memory in MB."""
    command = [sys.executable, __file__, "--measure", json.dumps([function.__name__, *args])]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"speed.py: {function.__name__}{args} failed:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def measure(text):
    name, *args = json.loads(text)
    value = globals()[name](*args)
    # Of this process and of its largest child: Linux counts in KiB.
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"value": value, "peak_mb": peak / 1024}))


def seconds_to(run, accuracy):
    return next((so_far for _, so_far, reached in run["value"]["rows"] if reached >= accuracy), None)


def fastest_rate(run):
    """Training images a second in the fastest epoch."""
    return run["value"]["images"] / min(seconds for seconds, *_ in run["value"]["rows"])


def reached(limits, name, run):
    """(GFLOP/s of a run of the named recipe, their share of the fastest product in `limits`)."""
    used = limits[f"operations for one training image, {name}"] * fastest_rate(run) / 1e9
    return used, used / max(value for kind, value in limits.items() if kind.startswith("torch"))


def part_rate(source, say):
    rates = {"assignment": [], "ours": []}
    for _ in range(3):
        rates["assignment"].append(fastest_rate(alone(peer_epochs, source, 3)))
        rates["ours"].append(fastest_rate(alone(our_epochs, source, "example", 3)))
    medians = {way: statistics.median(values) for way, values in rates.items()}
    say("training images a second at the example report's sizes")
    say(f"  assignment's way {medians['assignment']:.0f}, ours {medians['ours']:.0f}")
    say(f"  ratio {medians['ours'] / medians['assignment']:.1f}")
    return rates


def part_accuracy(source, say):
    runs = {
        "assignment's way, example's values": alone(peer_epochs, source, 50),
        "ours, recipe example": alone(our_epochs, source, "example"),
        "ours, recipe default": alone(our_epochs, source, "default"),
    }
    say(
        f"{'seconds of training to':36}"
        + "".join(f"{mark:>9.2%}" for mark in MARKS)
        + "   end   s in all  peak MB"
    )
    for name, run in runs.items():
        times = [seconds_to(run, mark) for mark in MARKS]
        shown = "".join(f"{'never' if t is None else f'{t:.0f}':>9}" for t in times)
        _, total, accuracy = run["value"]["rows"][-1]
        say(f"{name:36}{shown} {accuracy:7.2%} {total:8.0f} {run['peak_mb']:8.0f}")
    first, *others = (seconds_to(run, 0.85) for run in runs.values())
    if first:
        say("  ratio of times to 85 %: " + ", ".join(f"{first / t:.1f}" for t in others if t))
    return runs


def part_bundle(source, say):
    found = alone(bundle, source)
    value = found["value"]
    say(
        f"command to bundle, recipe default: {value['seconds']:.0f} s, peak {found['peak_mb']:.0f} MB "
        f"(test accuracy {value['accuracy']:.2%})"
    )
    return found


def part_growth(source, say):
    rows = []
    cases = [(1260 * times, 128, False) for times in (1, 10, 50)] + [(12600, 128, True)]
    cases += [(1260, side, False) for side in (28, 64, 96, 160, 224)]
    for count, side, on_disk in cases:
        found = alone(grown, count, side, on_disk)
        rate = found["value"]["images_per_second"]
        place = "on disk" if on_disk else "in memory"
        say(f"{count:6} images of {side:3}, {place:9}: {rate:7.0f} images/s, peak {found['peak_mb']:.0f} MB")
        rows.append({"images": count, "side": side, "on_disk": on_disk, **found})
    return rows


def part_limit(source, say):
    found = alone(limits)["value"]
    for name, value in found.items():
        say(f"{name}: {value:.3g}" + (" GFLOP/s" if name.startswith("torch") else ""))
    used, share = reached(found, "default", alone(our_epochs, source, "default", 3))
    say(f"training with the default recipe: {used:.0f} GFLOP/s, {share:.0%} of the fastest product")
    return found | {"training, GFLOP/s": used}


def part_predict(source, say):
    rows = []
    for count in (600, 6_000):
        found = alone(predicted, count)["value"]
        rate = count / found["seconds"]
        say(f"{count:6} new pictures: {rate:5.0f} a second, the start included, peak {found['mb']:.0f} MB")
        rows.append({"pictures": count, **found})
    return rows


def card():
    """Name, driver and memory of the GPU, as its driver says."""
    query = "--query-gpu=name,driver_version,memory.total"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def part_gpu(source, say):
    from lab.machine import choose_device

    if choose_device().type != "cuda":
        say("no CUDA device: not measured")
        return None
    found = {"card": card(), "limits": alone(limits)["value"]}
    say(found["card"])
    found["assignment's way, example's values"] = peer = alone(peer_epochs, source, 3)
    say(f"assignment's way, example's values: {fastest_rate(peer):.0f} images/s")
    for name, precision in (("default", "auto"), ("default", "fp16"), ("example", "auto"), ("best", "auto")):
        run = alone(our_epochs, source, name, 3 if name == "example" else None, precision)
        *_, (_, seconds, accuracy) = run["value"]["rows"]
        _, share = reached(found["limits"], name, run)
        say(
            f"ours, {name}, {run['value']['precision']}: {fastest_rate(run):.0f} images/s, "
            f"{seconds:.1f} s in all, {accuracy:.2%}, {share:.1%} of the fastest product"
        )
        found[f"ours, {name}, {precision}"] = run
    return found


PARTS = {
    "rate": part_rate,
    "accuracy": part_accuracy,
    "bundle": part_bundle,
    "growth": part_growth,
    "limit": part_limit,
    "predict": part_predict,
    "gpu": part_gpu,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", metavar="PATH", help="NEU-CLS, a zip")
    parser.add_argument("--output", type=Path, metavar="JSON")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure)
    if not args.data or not args.output:
        parser.error("--data and --output are needed")

    from lab.files import write_whole
    from lab.machine import choose_device, describe_machine
    from lab.record import as_json

    result = json.loads(args.output.read_text()) if args.output.is_file() else {}
    for part in args.parts:
        lines = []

        def say(line, lines=lines):
            print(line, flush=True)
            lines.append(line)

        found = PARTS[part](args.data, say)
        result[part] = {
            "date": datetime.datetime.now().isoformat(timespec="seconds"),
            "machine": describe_machine(choose_device()),
            "printed": lines,
            "raw": found,
        }
        write_whole(args.output, as_json(result))


if __name__ == "__main__":
    main()
