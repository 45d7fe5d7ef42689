"""The submitted code as a notebook, a section for each step of the assignment, run with its outputs.

It runs in a scratch folder that holds what a teacher has, the images and the submitted weights: nothing
is trained again.
"""

import atexit
import logging
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from lab.bundle import bundle_names, file_name
from lab.errors import InputError
from lab.files import place, write_whole
from lab.record import is_as_written
from report.submission import assemble_cells, assemble_submission, submission_of

START_SECONDS = 300  # for the kernel, on a busy machine


def check_finished(record, folder):
    """InputError unless the bundle in `folder` is still the one that its record describes."""
    _, code, weights = bundle_names(record.student.id)
    again = "run again with --force"
    for path in (folder / code, folder / weights, folder / "run" / "dataset_split"):
        if not path.exists():
            raise InputError(f"--notebook needs {path}, which is gone: {again}")
    if (folder / code).read_text(encoding="utf-8") != assemble_submission(submission_of(record)):
        why = "was changed, or written by another version, and a notebook would hold other code"
        raise InputError(f"{folder / code} {why}: {again}")
    if not is_as_written(record, folder / weights):
        raise InputError(f"{folder / weights} is not the file in run/record.json: {again}")


def write_notebook(record, folder, tick=lambda: None):
    """Write the notebook into the finished bundle in `folder`, run with its outputs; `tick` after each cell.

    Returns (its path, a line for the user or None). One that does not run is written without outputs.
    """
    import nbformat

    path = folder / file_name(record.student.id, "ipynb")
    text = assemble_cells(record, (folder / "run" / "training.log").read_text(encoding="utf-8"))
    notebook, message, begun = read_cells(text), None, []
    try:
        with tempfile.TemporaryDirectory(prefix="notebook-") as scratch:
            _run(notebook, record, folder, Path(scratch), begun.append, tick)
    except Exception as error:  # of the code, the kernel or the disk: none may cost the finished bundle
        name, said = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
        fault = " ".join(f"{name}: {said}".split())[:200]
        message = f"{path.name} stopped {_place(notebook, begun)} ({fault}): it is written without outputs"
        notebook = read_cells(text)
    write_whole(path, nbformat.writes(notebook) + "\n")
    return path, message


def read_cells(text):
    """The notebook of a text in the percent format. The same text gives the same notebook, ids too."""
    import jupytext

    notebook = jupytext.reads(text, {"extension": ".py", "format_name": "percent", "comment_magics": False})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for i, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata, cell.source = f"cell-{i}", {}, cell.source.strip("\n")
    return notebook


def _run(notebook, record, folder, scratch, begin, tick):
    """Run all cells in a kernel of this Python; they get their outputs. nbclient's errors where one fails.

    `begin` is called with a cell's number before it, `tick` after it.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    desk = scratch / "desk"
    shutil.copytree(folder / "run" / "dataset_split", desk / "dataset", copy_function=place)
    weights = file_name(record.student.id, "pth")
    shutil.copyfile(folder / weights, desk / weights)
    environment = os.environ | {"IPYTHONDIR": str(scratch), "JUPYTER_RUNTIME_DIR": str(scratch)}
    if record.machine.device != "cuda":  # the code takes a GPU where there is one
        environment["CUDA_VISIBLE_DEVICES"] = ""
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # what went wrong is said in one line
    manager = AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),  # not one that the user has installed
        connection_file=str(scratch / "kernel.json"),
    )
    client = NotebookClient(
        notebook, km=manager, startup_timeout=START_SECONDS,
        record_timing=False, coalesce_streams=True,  # the same weights give the same bytes
        on_cell_start=lambda cell_index, **_: begin(cell_index), on_cell_executed=lambda **_: tick(),
    )  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # In a thread, where nbclient leaves Ctrl-C alone: it would call it a dead kernel.
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(client.execute, cleanup_kc=True, cwd=str(desk), env=environment, **quiet)
        try:
            work.result()
        except KeyboardInterrupt:
            while not work.done():
                if manager.has_kernel:
                    manager.provisioner.process.kill()
                wait([work], 0.2)
            raise
        finally:
            atexit.unregister(client._cleanup_kernel)  # nbclient forgets it where no kernel starts
    for cell in notebook.cells:
        if cell.cell_type == "code":  # warnings name files of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def _place(notebook, begun):
    """ "in Step 5": where the last cell stands that was begun, of the numbers `begun`."""
    place = "at its start"
    for cell in notebook.cells[: max(begun, default=-1) + 1]:
        if cell.cell_type == "markdown" and (match := re.match(r"#+ (Step \d)", cell.source)):
            place = f"in {match[1]}"
    return place
