"""Answers in a process of its own, with limits: a student's template may loop for ever or fill the memory.

    python -m report.rehearsal < request.json      {"folder": ..., "record": ... or null}

prints {"texts": {question: text}} or {"error": line}. Without a record the answers are tried on a made-up
one, so that a fault shows before the training and not after it.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import types
import typing
from pathlib import Path

import msgspec

from lab.errors import InputError
from lab.findings import Findings
from lab.record import Record

ROOT = Path(__file__).parent.parent
SECONDS = 30
MEMORY = 2 * 2**30  # bytes of address space, where the system can limit it
CLASSES = ["a", "b"]


def example(kind):
    """A value of a type of the record, such as a record of two classes "a" and "b"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return example(next(part for part in inner if part is not type(None)))
    if origin is list:
        return list(CLASSES) if inner[0] is str else [example(inner[0]) for _ in CLASSES]
    if origin is dict:
        return {name: example(inner[1]) for name in CLASSES}
    if origin is tuple:
        return tuple(example(part) for part in inner if part is not Ellipsis)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        missing = dataclasses.MISSING
        needed = [f.name for f in dataclasses.fields(kind) if f.default is missing is f.default_factory]
        return kind(**{name: example(hints[name]) for name in needed})
    return {str: "a", int: 2, float: 0.5, bool: True}[kind]


def example_record():
    """A Record of two classes, "a" and "b", with studies."""
    record = example(Record)
    record.data.counts = {"train": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}
    record.findings = Findings(*(example(kind) for kind in typing.get_type_hints(Findings).values()))
    return record


def ask(folder, record):
    """{question id: text} of the answers in `folder`, looked up in a Record, or tried without one.

    InputError for what is wrong with them, and where they take too long or too much memory.
    """
    # Whole: the process begins in a folder of its own.
    request = {"folder": str(Path(folder).resolve()), "record": record and msgspec.to_builtins(record)}
    answer = _in_child(request)
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["texts"]


def _in_child(request):
    """What `fill` returns, from a process with limits. InputError where it ends at one."""
    where, shorten = f"--answers {request['folder']}", "shorten their loops and formulas"
    try:
        process = subprocess.run(
            [sys.executable, "-m", "report.rehearsal"],
            cwd=ROOT, input=json.dumps(request), timeout=SECONDS, capture_output=True, encoding="utf-8",
        )  # fmt: skip
        return json.loads(process.stdout)
    except subprocess.TimeoutExpired:
        raise InputError(f"{where}: filling them in takes over {SECONDS} s: {shorten}") from None
    except ValueError:  # it was ended by the system, or ran out of memory
        raise InputError(f"{where}: they need too much memory, or nest too deep: {shorten}") from None


def fill(request):
    """The answer to a request, as above."""
    from report import answers

    tried = request["record"] is None
    record = example_record() if tried else msgspec.convert(request["record"], Record)
    try:
        return {"texts": answers.fill_in(record, Path(request["folder"]), tried)}
    except InputError as error:
        return {"error": str(error)}


def main():
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))  # where nobody is left to end it
    print(json.dumps(fill(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
