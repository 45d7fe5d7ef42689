"""The submitted `.py`: one file in the order of the assignment's six steps, from the project's source."""

import jinja2

from report.source import ROOT, piece


def _call(name, values):
    """`name(key=value, ...)`, one argument a line."""
    return f"{name}(\n" + "".join(f"    {key}={value!r},\n" for key, value in values.items()) + ")"


def assemble_submission(record):
    """The text of the submitted program, with the hyperparameters of the recorded run."""
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
        id=record["student"]["id"],
        name=record["student"]["name"],
        settings=_call("SimpleNamespace", record["recipe"]["values"]),
        classes=record["data"]["classes"],
        results=record["results"],
    )
