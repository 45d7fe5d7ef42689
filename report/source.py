"""Pieces of the project's own source, by name: for code excerpts and for the submitted `.py`."""

import ast
import re
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


@lru_cache
def _parsed(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    return text.splitlines(), ast.parse(text)


def _names(node):
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if hasattr(node, "name") else []


def find(file, name):
    """The syntax node of a function, class, method ("Class.method") or constant. LookupError if none."""
    body = _parsed(file)[1].body
    node = None
    for part in name.split("."):
        node = next((n for n in body if part in _names(n)), None)
        if node is None:
            raise LookupError(f"{file} has no {name}")
        body = getattr(node, "body", [])
    return node


def piece(file, name):
    """The whole text of a definition, with its decorators and the comment lines right above it."""
    lines, _ = _parsed(file)
    node = find(file, name)
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    return "\n".join(lines[first : node.end_lineno])


def excerpt(file, name, start=None, end=None):
    """Lines of a definition without its docstring: (text, first line number, last line number).

    `start` and `end` narrow it to the lines from the first that holds `start` to the first from there
    on that holds `end`. LookupError where they don't occur.
    """
    lines, _ = _parsed(file)
    node = find(file, name)
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
        raise LookupError(f"{name} in {file} has no line with {start!r} to {end!r}") from None
    margin = min(len(lines[n - 1]) - len(lines[n - 1].lstrip()) for n in numbers if lines[n - 1].strip())
    return "\n".join(lines[n - 1][margin:] for n in numbers), numbers[0], numbers[-1]


def recipe_groups():
    """{heading: [names]} of the hyperparameters, under the comments that head them in recipe.py."""
    lines, _ = _parsed("recipe.py")
    groups, heading = {}, "Hyperparameters"
    for node in find("recipe.py", "Recipe").body:
        if isinstance(node, ast.AnnAssign):
            above = lines[node.lineno - 2].strip()
            if above.startswith("# The "):
                heading = re.match(r"# The ([\w ,-]+)", above)[1].strip().capitalize()
            groups.setdefault(heading, []).append(node.target.id)
    return groups
