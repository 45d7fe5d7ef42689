"""The submitted code, read as text and never run: its settings, and where it is not our text for them."""

import ast
import difflib
import json
import re
from typing import NamedTuple

from lab.bundle import STUDENT_ID
from lab.errors import InputError
from lab.recipe import Recipe
from report.submission import DTYPES, Submission, assemble_code_cells, assemble_submission

CODE_BYTES, NOTEBOOK_BYTES = 2**20, 2**26  # a notebook holds its pictures
MAX_LINES = 20_000
MODEL = ("pair", "PreNorm", "FeedForward", "Attention", "Transformer", "ViT", "make_model")
NO_PROGRAM = (SyntaxError, ValueError, RecursionError, MemoryError)  # what the parser raises


class Code(NamedTuple):
    """What a submitted program's text says, beside what this project writes for its settings."""

    submission: Submission
    digest: str | None  # of an edited text, its id taken out
    diff: list  # lines of the difference; none: it is the same text
    model_changed: list  # names of the model's parts that are others
    names: set  # of its functions and classes


def read_bounded(path, most):
    """The bytes of a file. InputError where it has more than `most`."""
    if path.stat().st_size > most:
        raise InputError(f"{path.name} has {path.stat().st_size / 1e6:.0f} MB, over {most / 1e6:.0f}")
    return path.read_bytes()


def read_text(path):
    """The code of a .py or .ipynb: (text, whether it is a notebook's). InputError if it has none."""
    notebook = path.suffix == ".ipynb"
    content = read_bounded(path, NOTEBOOK_BYTES if notebook else CODE_BYTES)
    try:
        if notebook:
            cells = json.loads(content)["cells"]
            content = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code").encode()
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        kind = "notebook" if notebook else "UTF-8 text"
        raise InputError(f"the {path.suffix} is no {kind} ({type(error).__name__})") from None
    if text.count("\n") > MAX_LINES:
        raise InputError(f"the code has more than {MAX_LINES} lines")
    return text, notebook


def constants(tree):
    """{name: value} of what a program sets at its top to plain values: literals, SimpleNamespace(...) of
    them as a dict, and torch.name as "name". All else is passed over; nothing is run."""
    found = {}
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        value = node.value
        try:
            if isinstance(value, ast.Call) and ast.unparse(value.func) == "SimpleNamespace":
                value = {keyword.arg: ast.literal_eval(keyword.value) for keyword in value.keywords}
            elif isinstance(value, ast.Attribute) and ast.unparse(value.value) == "torch":
                value = value.attr
            else:
                value = ast.literal_eval(value)
        except (*NO_PROGRAM, TypeError):
            continue
        found[node.targets[0].id] = value
    return found


def read_submission(text):
    """(Submission, syntax tree) of a program's text. InputError where its settings cannot be read."""
    try:
        tree = ast.parse(text)
    except NO_PROGRAM as error:
        raise InputError(f"the code is not a Python program ({getattr(error, 'msg', error)})") from None
    known = constants(tree)
    student = re.search(rf"({STUDENT_ID})_Lab8_Homework\.pth", text)
    precision = {dtype: name for name, dtype in DTYPES.items()}.get(known.get("PRECISION"))
    if not isinstance(known.get("SETTINGS"), dict) or not student or not precision:
        raise InputError("the code has no SETTINGS, PRECISION and WEIGHTS_PATH that can be read as text")
    try:
        recipe = Recipe(**known["SETTINGS"])
    except (TypeError, ValueError) as error:
        raise InputError(f"SETTINGS in the code cannot be read: {error}") from None
    # Without load_data it reads the run's split.
    alone = any(getattr(node, "name", "") == "load_data" for node in tree.body)
    return Submission(student[1], recipe, precision, known.get("PIXEL_RANGE"), not alone), tree


def _bound(node):
    """The names that a syntax node gives a meaning to, the first part of `ViT.forward = ...` too."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
        return [ast.unparse(node.value).split(".")[0]]
    return [node.id] if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) else []


def _model(tree):
    """{name: what gives it a meaning} of the model's parts, without docstrings and comments."""
    found = {name: [] for name in MODEL}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    for node in ast.walk(tree):
        for name in found.keys() & set(_bound(node)):
            found[name].append(ast.dump(node))
    return found


def read_code(path):
    """The Code in a submitted .py or .ipynb. InputError where it cannot be read."""
    text, notebook = read_text(path)
    submission, tree = read_submission(text)
    written = assemble_submission(submission)
    if notebook:
        written = "\n".join(assemble_code_cells(submission))
    # Not splitlines(), which also ends a line where Python does not: at U+2028 a comment goes on.
    theirs, ours = text.rstrip("\n").split("\n"), written.rstrip("\n").split("\n")
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    if theirs == ours:
        return Code(submission, None, [], [], names)
    diff = list(difflib.unified_diff(ours, theirs, "written", "handed in", lineterm=""))
    parts, expected = _model(tree), _model(ast.parse(written))
    changed = [name for name in MODEL if parts[name] != expected[name]]
    return Code(submission, text.replace(submission.id, ""), diff, changed, names)
