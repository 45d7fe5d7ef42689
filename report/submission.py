"""The submitted code in the order of the assignment's six steps, from the project's source: one template
for the `.py` and the notebook."""

import jinja2

from report.source import ROOT, piece


def _call(name, values):
    """`name(key=value, ...)`, one argument a line."""
    return f"{name}(\n" + "".join(f"    {key}={value!r},\n" for key, value in values.items()) + ")"


def _fill(record, **more):
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(
        source=lambda file, *names: "\n\n\n".join(piece(file, name) for name in names),
        constants=lambda file, *names: "\n".join(piece(file, name) for name in names),
    )
    return environment.get_template("submission.py.j2").render(
        id=record["student"]["id"], settings=_call("SimpleNamespace", record["recipe"]["values"]), **more
    )


def assemble_submission(record):
    """The text of the submitted program, with the hyperparameters of the recorded run."""
    return _fill(record, notebook=False)


def assemble_cells(record, log):
    """The text of the notebook in the percent format: `# %%` begins a cell. `log`: that of the training."""
    lines = log.splitlines()
    last = max((i for i, line in enumerate(lines) if line.startswith("Epoch:")), default=0)
    return _fill(
        record,
        notebook=True,
        demonstration=record["data"]["demonstration"],
        date=record["date"][:10],
        log=lines,
        last_epoch=lines[last:],
    )
