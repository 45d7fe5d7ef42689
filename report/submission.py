"""The submitted code in the order of the assignment's six steps, from the project's source: one template
for the `.py` and the notebook."""

import json
import textwrap
from functools import lru_cache

from report.page import templates
from report.source import piece, recipe_groups

WIDTH = 110  # letters a line, as in the project's source
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


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


def _fill(record, **more):
    return _template().render(
        id=record.student.id,
        settings=_settings(record.recipe.values),
        precision=DTYPES[record.machine.precision],
        pixel_range=record.data.pixel_range,
        from_split=record.data.from_split,
        **more,
    )


def assemble_submission(record):
    """The text of the submitted program, with the hyperparameters of the recorded run."""
    return _fill(record, notebook=False)


def assemble_cells(record, log):
    """The text of the notebook in the percent format: `# %%` begins a cell. `log`: that of the training."""
    lines = log.splitlines()
    last = max((i for i, line in enumerate(lines) if line.startswith("Epoch:")), default=0)
    about = {"demonstration": record.data.demonstration, "date": record.date[:10]}
    return _fill(record, notebook=True, log=lines, last_epoch=lines[last:], **about)
