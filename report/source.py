"""Pieces of Python source by name: of the project's files for the submitted `.py`, and of the submitted
`.py` for the report's listings."""

import ast
import re
import textwrap
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
# A banner opens each step of the submitted program.
STEP = re.compile(r"# (?:=+ )?Step (\d+)\b")


@lru_cache
def _parsed(text):
    return text.splitlines(), ast.parse(text)


@lru_cache
def _text(file):
    return (ROOT / file).read_text(encoding="utf-8")


def _names(node):
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if hasattr(node, "name") else []


def find(text, name, where="the code"):
    """The syntax node of a function, class, method ("Class.method") or constant in a program's text.
    LookupError if there is none; `where` names the text in its message."""
    body = _parsed(text)[1].body
    node = None
    for part in name.split("."):
        node = next((n for n in body if part in _names(n)), None)
        if node is None:
            raise LookupError(f"{where} has no {name}")
        body = getattr(node, "body", [])
    return node


def piece(file, name):
    """The whole text of a definition in a file of the project, with its decorators and the comment lines
    right above it. LookupError if the file does not define it."""
    text = _text(file)
    lines, _ = _parsed(text)
    node = find(text, name, file)
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    return "\n".join(lines[first : node.end_lineno])


def excerpt(text, name, start=None, end=None):
    """Lines of a definition in a program's text, without its docstring and indentation:
    (lines, first line number, last line number).

    `start` and `end` narrow it to the lines from the first that holds `start` to the first from there
    on that holds `end`. LookupError where they do not occur.
    """
    lines, _ = _parsed(text)
    node = find(text, name)
    numbers = list(range(node.lineno, node.end_lineno + 1))
    if ast.get_docstring(node):
        doc = node.body[0]
        after = doc.end_lineno + (not lines[doc.end_lineno].strip())
        numbers = [n for n in numbers if not doc.lineno <= n <= after]
    try:
        if start:
            numbers = numbers[next(i for i, n in enumerate(numbers) if start in lines[n - 1]) :]
        if end:
            numbers = numbers[: next(i for i, n in enumerate(numbers) if end in lines[n - 1]) + 1]
    except StopIteration:
        raise LookupError(f"{name} has no line with {start!r} to {end!r}") from None
    return textwrap.dedent("\n".join(lines[n - 1] for n in numbers)), numbers[0], numbers[-1]


def step_of(text, line):
    """The step whose banner is the last above a line of the submitted program, e.g. "3"; None above all."""
    found = [match[1] for match in map(STEP.match, _parsed(text)[0][:line]) if match]
    return found[-1] if found else None
