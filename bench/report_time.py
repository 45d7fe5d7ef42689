#!/usr/bin/env python3
"""Seconds and sizes of a report drawn from a finished run.

    python bench/report_time.py outputs/0812345        [--repeat 3]

Each report is drawn in a process of its own, as `run.py --report-only` does it, in a copy of the bundle.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = Path(__file__).resolve().parent.parent / "run.py"
sys.path.insert(0, str(RUN.parent))

import lab  # noqa: E402, F401  says which packages are missing


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="the folder of a finished run: outputs/<id>")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    student_id = args.bundle.resolve().name
    with tempfile.TemporaryDirectory() as folder:
        skip = shutil.ignore_patterns("dataset*")
        copy = shutil.copytree(args.bundle, Path(folder) / student_id, ignore=skip)
        command = [sys.executable, RUN, "--student-id", student_id, "--report-only", "--quiet"]
        for number in range(1, args.repeat + 1):
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([*command, "--output-dir", folder], check=True, stdout=subprocess.DEVNULL)
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"run {number}: {wall:.2f} s wall, {busy:.2f} s of processor time")
        for file in (copy / f"{student_id}_Lab8_Homework.pdf", copy / "run" / "report.html"):
            print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
