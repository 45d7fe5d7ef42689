"""The notebook: the submitted code in six sections, with outputs that are those of the submitted weights."""

import ast
import base64
import importlib.util
import io
import os
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import ROOT, TINY_SETTINGS, call, refused, run_program
from PIL import Image
from test_resume import same, weights_of
from test_submission import recorded

import report
from lab import bundle as output
from verify.code import read_code

NAME = "0812345_Lab8_Homework.ipynb"


def report_again(made, *more):
    """Call run.py --report-only --notebook for a bundle. -> exit code"""
    return call(*made.args, "--report-only", "--notebook", "--quiet", *more)


@pytest.fixture(scope="module")
def made(bundle, tmp_path_factory):
    """A copy of the finished bundle, with its notebook."""
    copied = bundle.copy_to(tmp_path_factory.mktemp("notebook"))
    assert report_again(copied) == 0
    return copied


@pytest.fixture
def cells(monkeypatch):
    """Put other cells, which run in no time, in the place of ours."""

    def put(text):
        monkeypatch.setattr(report.notebook, "assemble_cells", lambda record, log: text)

    return put


def read(made):
    return nbformat.read(made.folder / NAME, as_version=4)


def code_of(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def said(notebook):
    """What all cells printed."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return "".join(o.text for o in outputs if o.output_type == "stream")


def scored(notebook):
    return re.findall(r"Average test loss: ([\d.]+) Accuracy: (\d+)/(\d+)", said(notebook))[-1]


def test_it_is_a_valid_notebook_with_a_section_for_each_step(made):
    notebook = read(made)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    sections = {}
    for cell in notebook.cells:
        if match := re.match(r"## Step (\d): ", cell.source):
            sections[match[1]] = section = []
        elif sections:
            section.append(cell.cell_type)
    assert list(sections) == list("123456")
    assert all(section[0] == "code" for section in sections.values())


BRANCHES = ("if evaluate_only:", "if TRAIN or", "if test_loss_history:")


def statements(code):
    """The statements of a program, those in main() and in branches of the steps for themselves."""
    found = []
    waiting = list(ast.parse(code).body)
    while waiting:
        node = waiting.pop(0)
        text = ast.unparse(node)
        if getattr(node, "name", "") == "main" or text.startswith(BRANCHES):
            waiting = [*node.body, *getattr(node, "orelse", []), *waiting]
        else:
            found.append(text)
    return found


def test_its_cells_hold_the_code_of_the_program(made):
    code, together = made.code.read_text(), code_of(read(made))
    program, notebook = statements(code), statements(together)
    only_in_program = [text for text in program if text not in notebook]
    only_in_notebook = [text for text in notebook if text not in program]
    weights = "0812345_Lab8_Homework.pth"
    assert only_in_notebook == [
        "TRAIN = False",
        "from IPython.display import Image as SavedImage",
        f"WEIGHTS_PATH = Path('{weights}')",
        "display(SavedImage('train_set_grid.png'), SavedImage('test_set_grid.png'))",
        "print('Loading', WEIGHTS_PATH)",
        "display(SavedImage('losses.png'))",
        "display(SavedImage('confusion_matrix.png'), SavedImage('example_predictions.png'))",
    ]
    head = f"WEIGHTS_PATH = Path(globals().get('__file__', 'cell')).with_name('{weights}')"
    beginnings = (
        "'Lab 8",
        "Lab 8",
        "import sys",
        head,
        "evaluate_only",
        "return",
        "if hasattr(sys.stdout",  # a notebook's output takes all letters
        "import argparse",  # a notebook has a switch, TRAIN, in place of the flag
        "parser",
        "if __name__ == '__main__'",
    )
    assert [text for text in only_in_program if not text.lstrip("\"'").startswith(beginnings)] == []
    for node in ast.parse(code).body:  # with its comments and in its order
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "main":
            _, found, together = together.partition(ast.get_source_segment(code, node))
            assert found, node.name
    assert read_code(made.folder / NAME).diff == []  # verification writes the same cells


def test_every_name_in_it_is_defined_and_used(made):
    process = run_program("-m", "ruff", "check", "--isolated", "--select", "F", made.folder / NAME, cwd=ROOT)
    assert process.returncode == 0, process.stdout


def test_its_outputs_are_those_of_the_submitted_weights(made):
    notebook = read(made)
    assert scored(notebook) == recorded(made)
    text = said(notebook)
    for line in ("Train samples: 21", "Test samples: 9", "Loading 0812345", "Total params: "):
        assert line in text
    assert "Epoch:" not in text  # nothing was trained
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    pictures = [o.data["image/png"] for o in outputs if o.output_type == "display_data"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
    assert len(sizes) == 4 and min(side for size in sizes for side in size) > 200
    assert {o.get("name") for o in outputs if o.output_type == "stream"} == {"stdout"}


def test_it_shows_the_log_of_the_training(made):
    log = (made.run / "training.log").read_text().splitlines()
    text = "\n".join(cell.source for cell in read(made).cells if cell.cell_type == "markdown")
    assert "\n".join(log) in text
    assert text.count(log[-1]) == 2  # the last epoch is visible, the whole folded


def test_it_names_no_place_on_this_machine(made):
    text = (made.folder / NAME).read_text()
    for place in (tempfile.gettempdir(), sys.prefix, str(ROOT), str(Path.home()), str(made.home)):
        assert place not in text


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_fresh_kernel_runs_it_beside_the_zip(bundle, made, tmp_path, monkeypatch, with_weights):
    """As a teacher would; where the weights are not there it trains to the very same ones."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    desk = tmp_path / "desk"
    desk.mkdir()
    shutil.copy(bundle.home / "dataset.zip", desk)
    if with_weights:
        shutil.copy(made.weights, desk)
    notebook = read(made)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbclient.execute(notebook, cwd=str(desk), kernel_name="python3")
    assert scored(notebook) == recorded(bundle)
    assert said(notebook).count("Epoch: ") == (0 if with_weights else 6)
    assert (desk / "losses.png").exists() == (not with_weights)
    assert same(weights_of(made.weights), weights_of(desk / made.weights.name))


def test_written_again_it_has_the_same_bytes_and_nothing_is_left_lying_about(made, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(made.home.rglob("*"))
    content = (made.folder / NAME).read_bytes()
    assert report.write_notebook(made.record, made.folder) == (made.folder / NAME, None)
    assert (made.folder / NAME).read_bytes() == content
    assert set(made.home.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_replaces_it_holds_and_uploads_three_files(bundle, copy, capsys):
    (copy.folder / NAME).write_text("the old one")
    args = [*copy.args, "--data", bundle.home / "dataset.zip", *TINY_SETTINGS, "--set", "epochs=1"]
    assert call(*args, "--force", "--notebook", "--zip") == 0
    said = capsys.readouterr().out
    assert re.search(r"7/8  Notebook\n8/8  Verification\n +0812345  holds: ", said)
    upload = copy.folder / "0812345_Lab8_Homework.zip"
    names = [path.name for path in (copy.pdf, copy.code, copy.weights)]
    for name in (*names, NAME, upload.name):
        assert str(copy.folder / name) in said.splitlines()
    with zipfile.ZipFile(upload) as archive:
        assert archive.namelist() == names
    assert scored(read(copy)) == recorded(copy)


def test_a_notebook_of_other_weights_does_not_stay(tmp_path, capsys):
    folder = tmp_path / "0812345"
    folder.mkdir()
    (folder / NAME).write_text("of the old run")
    said = refused(capsys, "--student-id", "0812345", "--output-dir", tmp_path)
    assert "already holds 0812345_Lab8_Homework.ipynb: add --force" in said
    with output.staged(folder):
        pass
    assert not (folder / NAME).exists()


FAULT = "# %% [markdown]\n# ## Step 1\n\n# %%\nprint(1)\n\n# %% [markdown]\n# ## Step 2\n\n# %%\n"


def test_one_that_does_not_run_is_written_without_outputs_and_said_so(copy, cells, capsys):
    cells(FAULT + "raise ValueError('two\\nlines')")
    copy.pdf.unlink()
    assert report_again(copy) == 1
    said = capsys.readouterr()
    fault = "in Step 2 (ValueError: two lines)"
    assert said.err == f"run.py: {NAME} stopped {fault}: it is written without outputs\n"
    assert said.out.splitlines() == [str(copy.pdf), str(copy.folder / NAME)]
    assert copy.pdf.read_bytes().startswith(b"%PDF")
    assert [cell.get("outputs", []) for cell in read(copy).cells] == [[]] * 4
    assert "raise ValueError" in code_of(read(copy))


def test_a_kernel_that_dies_is_one_line(copy, cells):
    cells(FAULT + "import os\nos._exit(1)")
    _, message = report.write_notebook(copy.record, copy.folder)
    assert (
        message == f"{NAME} stopped in Step 2 (DeadKernelError: Kernel died): it is written without outputs"
    )


def test_a_kernel_that_does_not_start_is_one_line(copy, cells, tmp_path, monkeypatch):
    (tmp_path / "ipykernel_launcher.py").write_text("raise SystemExit(5)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cells(FAULT)
    _, message = report.write_notebook(copy.record, copy.folder)
    assert message.startswith(f"{NAME} stopped at its start (RuntimeError: Kernel died before replying")


def test_ctrl_c_stops_its_kernel_too(copy, cells):
    (copy.folder / NAME).write_text("the old one")
    pid = copy.home / "pid"
    cells(
        "# %%\nimport os, signal, time\n"
        f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGINT)\ntime.sleep(100)\n"
    )
    with pytest.raises(KeyboardInterrupt):
        report.write_notebook(copy.record, copy.folder)
    assert (copy.folder / NAME).read_text() == "the old one"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_missing_packages_are_named_before_anything_is_done(copy, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    without = lambda name: None if name == "nbclient" else found(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    message = "run.py: --notebook needs nbclient: pip install jupytext nbclient ipykernel (80 MB)\n"
    before = copy.pdf.stat().st_mtime_ns
    assert report_again(copy) == 2
    assert capsys.readouterr().err == message
    assert copy.pdf.stat().st_mtime_ns == before
    new = ["--student-id", "1", "--data", "demo", "--output-dir", tmp_path / "new", "--notebook", "--quiet"]
    assert refused(capsys, *new) == message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b.weights.unlink(), "0812345_Lab8_Homework.pth, which is gone"),
        (lambda b: b.weights.write_bytes(b"other"), "is not the file in run/record.json"),
        (lambda b: b.code.write_text("other"), "was changed, or written by another version"),
        (lambda b: shutil.rmtree(b.run / "dataset_split"), "dataset_split, which is gone"),
    ],
)
def test_a_bundle_that_is_no_longer_its_runs_gets_none(copy, capsys, spoil, message):
    spoil(copy)
    assert report_again(copy) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (copy.folder / NAME).exists()


def test_a_notebook_made_from_demonstration_images_says_so(bundle):
    record = bundle.record
    sentence = "Made from demonstration images"
    assert sentence not in report.submission.assemble_cells(record, "")
    record.data.demonstration = True
    assert sentence in report.submission.assemble_cells(record, "")
