"""Answers in a process of its own, with limits: a student's template may loop for ever or fill the memory.

Without a record the answers are tried on a made-up one, so that a fault shows before the training and not
after it.
"""

import dataclasses
import multiprocessing
import types
import typing
from pathlib import Path

from lab.errors import InputError
from lab.findings import Findings
from lab.machine import apart
from lab.record import Record

SECONDS = 30
# Bytes of address space, where the system can limit it; and seconds, where nobody is left to end it.
LIMITS = {"RLIMIT_AS": 2 * 2**30, "RLIMIT_CPU": 2 * SECONDS}
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
    where, shorten = f"--answers {folder}", "shorten their loops and formulas"
    # A fresh process: a copy of this one would hold its memory, and PyTorch's threads as they stand.
    context = multiprocessing.get_context("spawn")
    try:
        texts, fault = apart(context, fill, Path(folder), record, seconds=SECONDS, limits=LIMITS)
    except TimeoutError:
        raise InputError(f"{where}: filling them in takes over {SECONDS} s: {shorten}") from None
    except EOFError:  # it was ended by the system, or ran out of memory
        raise InputError(f"{where}: they need too much memory, or nest too deep: {shorten}") from None
    if fault:
        raise InputError(fault)
    return texts


def fill(folder, record):
    """({question id: text}, None), or (None, what is wrong with the answers)."""
    from report import answers

    try:
        return answers.fill_in(record or example_record(), folder, tried=record is None), None
    except InputError as error:
        return None, str(error)
