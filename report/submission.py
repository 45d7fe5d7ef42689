"""The submitted code in the order of the assignment's six steps, from the project's source: one template
for the `.py` and the notebook."""

import json
import re
import textwrap
from functools import lru_cache
from typing import NamedTuple

from lab.recipe import Recipe, recipe_groups
from report.page import templates
from report.source import piece

WIDTH = 110  # letters a line, as in the project's source
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Submission(NamedTuple):
    """All that the submitted program's text depends on. `precision`: fp32, bf16 or fp16; the last two are
    those of the record's DataFacts."""

    id: str
    recipe: Recipe
    precision: str
    pixel_range: tuple[float, float] | None = None
    from_split: bool = False


def submission_of(record):
    """The Submission of a recorded run."""
    data = record.data
    return Submission(
        record.student.id, record.recipe.values, record.machine.precision, data.pixel_range, data.from_split
    )


def _settings(recipe):
    """The hyperparameters as Python code: a comment for each group, as many as fit on a line."""
    values = recipe.as_dict()
    lines = []
    for heading, names in recipe_groups().items():
        words = ", ".join(
            f"{name}={json.dumps(values[name]) if isinstance(values[name], str) else values[name]}"
            for name in names
        )
        lines += [f"# {heading}", *textwrap.wrap(f"{words},", WIDTH - 4, break_long_words=False)]
    return "SimpleNamespace(\n" + textwrap.indent("\n".join(lines), "    ") + "\n)"


@lru_cache
def _template():
    environment = templates(keep_trailing_newline=True)
    environment.globals.update(
        source=lambda file, *names: "\n\n".join(piece(file, name) for name in names),
        constants=lambda file, *names: "\n".join(piece(file, name) for name in names),
    )
    return environment.get_template("submission.py.j2")


def _fill(submission, **more):
    return _template().render(
        id=submission.id,
        settings=_settings(submission.recipe),
        precision=DTYPES[submission.precision],
        pixel_range=submission.pixel_range,
        from_split=submission.from_split,
        **more,
    )


def assemble_submission(submission):
    """The text of the submitted program."""
    return _fill(submission, notebook=False)


def assemble_code_cells(submission):
    """The code of the notebook alone: the text of each cell."""
    text = _fill(submission, notebook=True, log=[], last_epoch=[], demonstration=False, date="")
    cells = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]
    return [body.strip("\n") for kind, body in zip(cells[::2], cells[1::2]) if "markdown" not in kind]


def assemble_cells(record, log):
    """The text of the notebook in the percent format: `# %%` begins a cell. `log`: that of the training."""
    lines = log.splitlines()
    last = max((i for i, line in enumerate(lines) if line.startswith("Epoch:")), default=0)
    about = {"demonstration": record.data.demonstration, "date": record.date[:10]}
    return _fill(submission_of(record), notebook=True, log=lines, last_epoch=lines[last:], **about)
