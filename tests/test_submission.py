"""The submitted `.py`, run alone as a teacher would: beside the zip and the weights, nothing else."""

import ast
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT, TINY_ARGS, Bundle, call, make_folder, run_program, striped, zip_folder
from fontTools.ttLib import TTFont
from PIL import Image
from test_resume import same, weights_of

from verify.__main__ import main as verify


def put_on(desk, bundle):
    """Put the submitted code and weights and dataset.zip into a folder, and nothing of the project."""
    for path in (bundle.code, bundle.weights, bundle.home / "dataset.zip"):
        shutil.copy(path, desk)
    return desk


@pytest.fixture
def desk(bundle, tmp_path):
    return put_on(tmp_path, bundle)


def scored(process):
    assert process.returncode == 0, process.stderr
    return re.findall(r"Average test loss: ([\d.]+) Accuracy: (\d+)/(\d+)", process.stdout)[-1]


def recorded(bundle):
    results = bundle.record.results
    return f"{results.loss:.4f}", str(results.correct), str(results.total)


def check_training(process, bundle, desk):
    """It gave the submitted weights, bit for bit, and left them as they are."""
    assert scored(process) == recorded(bundle)
    assert (desk / bundle.weights.name).read_bytes() == bundle.weights.read_bytes()
    retrained = weights_of(desk / f"{bundle.weights.stem}_retrained.pth")
    assert same(weights_of(bundle.weights), retrained)
    plots = ["train_set_grid", "test_set_grid", "losses", "confusion_matrix", "example_predictions"]
    assert {p.name for p in desk.glob("*.png")} == {f"{name}.png" for name in plots}


def test_evaluate_prints_the_very_result_of_the_report(bundle, desk):
    for _ in range(2):  # unzips, and finds it unzipped
        process = run_program("-I", desk / bundle.code.name, "--evaluate", cwd=desk)
        assert scored(process) == recorded(bundle)


def test_a_mistyped_flag_trains_nothing_and_damaged_weights_are_one_line(bundle, desk):
    process = run_program("-I", desk / bundle.code.name, "--evalaute", cwd=desk)
    assert process.returncode == 2 and "unrecognized arguments: --evalaute" in process.stderr
    weights = desk / bundle.weights.name
    for content in (b"", b"no weights", weights.read_bytes()[:5000]):
        weights.write_bytes(content)
        process = run_program("-I", desk / bundle.code.name, "--evaluate", cwd=desk)
        assert process.returncode == 1 and "Traceback" not in process.stderr
        assert process.stderr.startswith(f"error: {weights} is damaged, or of another model: ")


def test_alone_it_trains_to_the_same_weights_and_plots(bundle, desk):
    check_training(run_program("-I", desk / bundle.code.name, cwd=desk), bundle, desk)


# Wrapper folders, a ready-made split with the same names on both sides, copies, and two of 41 files that
# cannot be read; names that are TeX, that need another font, and that have a space.
CLASSES = ("$x$", "刮痕", "a b")


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    home = tmp_path_factory.mktemp("messy")
    top = home / "images" / "export" / "images"
    for kind, name in enumerate(CLASSES):
        for part, count in (("train", 8), ("val", 4)):
            (top / part / name).mkdir(parents=True)
            for i in range(1, count + 1):
                striped(kind, 1000 * kind + i + 100 * count).save(top / part / name / f"{i}.png")
        shutil.copy(top / "train" / name / "1.png", top / "val" / name / "again.png")
    for i in range(2):
        (top / "train" / "a b" / f"broken_{i}.png").write_text("not an image")
    zip_folder(home / "images", home / "dataset.zip")
    made = Bundle(home, "m")
    assert call(*made.args, "--data", home / "dataset.zip", *TINY_ARGS, "--quiet") == 0
    return made


def test_where_a_table_and_groups_were_needed_it_takes_the_split_of_the_run(tmp_path):
    """Also 16-bit images, of which it knows the scale; without the split it says what is missing."""
    for i in range(36):
        path = tmp_path / "images" / f"coil{i // 3}_{i}.png"
        path.parent.mkdir(exist_ok=True)
        values = np.asarray(striped(i % 2, i)).astype(np.uint16) * 4 + 2000
        Image.fromarray(values).save(path)
    rows = [f"coil{i // 3}_{i}.png,{('crack', '刮痕')[i % 2]}" for i in range(36)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    made = Bundle(tmp_path, "t")
    args = ["--data", tmp_path / "images", "--labels", tmp_path / "labels.csv", "--group", r"coil\d+"]
    assert call(*made.args, *args, *TINY_ARGS, "--quiet") == 0
    facts = made.record.data
    assert facts.from_split and 2000 <= facts.pixel_range[0] < facts.pixel_range[1] <= 3020
    assert facts.kept_together[0].groups == 12
    desk = tmp_path / "desk"
    desk.mkdir()
    for path in (made.code, made.weights):
        shutil.copy(path, desk)
    process = run_program("-I", made.code.name, "--evaluate", cwd=desk)
    assert process.returncode == 1 and "put dataset_split of the submitted run here" in process.stderr
    shutil.copytree(made.run / "dataset_split", desk / "dataset_split")
    check_training(run_program("-I", made.code.name, cwd=desk), made, desk)
    assert scored(run_program("-I", made.code.name, "--evaluate", cwd=desk)) == recorded(made)
    assert len(made.code.read_text(encoding="utf-8").splitlines()) < 600
    shutil.copy(made.pdf, desk)  # as a teacher has it, who has the table too
    shutil.rmtree(desk / "dataset_split")
    for path in desk.glob("*retrained*"):
        path.unlink()
    for path in desk.glob("*.png"):
        path.unlink()
    teacher = [str(desk), "--data", str(tmp_path / "images")]
    assert verify(teacher) == 1
    assert verify([*teacher, "--labels", str(tmp_path / "labels.csv")]) == 0


# As a notebook's kernel runs a cell, and what is drawn is told.
CELL = """
import sys, matplotlib.axes, matplotlib.mathtext
def told(self, x, y, **how):
    print("drawn:", how.get("label"), len(x), len(y), min(x), max(x))
    return plot(self, x, y, **how)
def parsed(*args, **how):
    sys.exit(f"set as a formula: {args}")
plot, matplotlib.axes.Axes.plot = matplotlib.axes.Axes.plot, told
matplotlib.mathtext.MathTextParser.parse = parsed
code, sys.argv = open(sys.argv[1], encoding="utf-8").read(), ["ipykernel_launcher.py", "-f", "kernel.json"]
exec(compile(code, "<cell>", "exec"), {"__name__": "__main__"})
"""


@pytest.fixture(scope="module")
def pasted(messy, tmp_path_factory):
    """The desk of a teacher with one font for Chinese, and what the code pasted into a cell said there."""
    desk = put_on(tmp_path_factory.mktemp("desk"), messy)
    fonts = tmp_path_factory.mktemp("user") / "fonts"
    fonts.mkdir()
    font = TTFont(ROOT / "templates" / "fonts" / "noto-serif-cjk-400-normal.woff2")
    font.flavor = None
    font.save(fonts / "noto.otf")
    (desk / "cell.py").write_text(CELL)
    return desk, run_program(
        "-I", "cell.py", messy.code.name, cwd=desk, XDG_DATA_HOME=str(fonts.parent),
        MPLCONFIGDIR=str(fonts.parent), MPLBACKEND="agg",
    )  # fmt: skip


def test_from_a_messy_zip_too_it_gives_the_same_weights_and_figures(messy, pasted):
    facts = messy.record.data
    assert facts.classes == sorted(CLASSES)
    assert sum(facts.counts["train"].values()) + sum(facts.counts["test"].values()) == 39
    assert facts.same_pixels.groups == 3 and len(facts.unreadable) == 2
    desk, process = pasted
    check_training(process, messy, desk)
    assert process.stdout.count("Left out, unreadable: ") == 2
    process = run_program("-I", messy.code.name, "--evaluate", cwd=desk)
    assert scored(process) == recorded(messy)


def test_its_figures_set_any_class_name(pasted):
    """No letter is missing where a font for it is installed, and no name is read as TeX."""
    assert pasted[1].returncode == 0, pasted[1].stderr
    assert "Glyph" not in pasted[1].stderr and "findfont" not in pasted[1].stderr


def test_its_loss_curve_has_a_point_an_epoch(messy, pasted):
    drawn = dict(re.findall(r"drawn: ([a-z ]+) (\d.+)", pasted[1].stdout))
    shown = min(6, -(-sum(messy.record.data.counts["train"].values()) // 8))  # losses an epoch
    assert drawn["test"] == "6 6 1 6"
    points, same_many, first, last = drawn["training batch"].split()
    assert int(points) == int(same_many) == 6 * shown
    assert float(first) == 0 and 5 < float(last) < 6


def code_lines(text):
    """The numbers of the lines that are not blank, a comment or part of a docstring."""
    docs = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs.update(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return [n for n, line in lines if n not in docs and line.strip() and line.strip()[0] != "#"]


def test_it_is_short_and_most_of_it_is_the_model(bundle):
    text = bundle.code.read_text()
    assert len(text.splitlines()) <= 600
    banners = [(n, line) for n, line in enumerate(text.splitlines(), 1) if "=====" in line]
    assert [re.fullmatch(r"# ===== Step (\d): .+ =====", line)[1] for _, line in banners] == list("123456")
    third, sixth = banners[2][0], banners[5][0]
    assert third < 300
    code = code_lines(text)
    assert 10 * sum(third < n < sixth for n in code) >= 4 * len(code)


def test_it_reads_in_the_order_of_the_six_steps(bundle):
    text = bundle.code.read_text()
    order = ["Step 1:", "def load_data", "Step 2:", "class BatchLoader", "Step 3:", "class ViT", "Step 4:"]
    order += ["def train_epoch", "Step 5:", "def fit", "Step 6:", "def plot_confusion", "def main"]
    assert sorted(order, key=text.index) == order
    assert not re.search(r"generated|jinja|\{\{|\{%", text, re.IGNORECASE)
    assert set(re.findall(r"--[a-z][a-z-]*", text)) == {"--evaluate"}


def test_it_is_the_projects_own_source(bundle):
    text = bundle.code.read_text()
    for file, name in (("vit.py", "ViT"), ("train.py", "train_epoch"), ("data.py", "choose_sides")):
        tree = ast.parse((ROOT / file).read_text())
        node = next(n for n in tree.body if getattr(n, "name", "") == name)
        assert ast.get_source_segment((ROOT / file).read_text(), node) in text


def test_it_imports_what_a_student_would(bundle):
    roots = set()
    for node in ast.walk(ast.parse(bundle.code.read_text())):
        if isinstance(node, ast.ImportFrom):
            roots.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
    # numpy and Pillow come with torchvision and matplotlib
    allowed = {"torch", "torchvision", "einops", "sklearn", "matplotlib", "numpy", "PIL"}
    plain = {"argparse", "collections", "concurrent", "functools", "hashlib", "math", "pathlib", "random"}
    assert roots <= allowed | plain | {"re", "shutil", "sys", "time", "types", "zipfile"}


def test_every_name_in_it_is_defined_and_used(bundle):
    process = run_program("-m", "ruff", "check", "--isolated", "--select", "F", bundle.code, cwd=ROOT)
    assert process.returncode == 0, process.stdout
    tree = ast.parse(bundle.code.read_text())
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert defined <= used


def test_what_is_missing_is_named(bundle, tmp_path):
    shutil.copy(bundle.code, tmp_path)
    process = run_program("-I", bundle.code.name, cwd=tmp_path)
    assert process.returncode != 0
    assert "dataset.zip" in process.stderr
    assert "Traceback" not in process.stderr
    make_folder(tmp_path / "dataset", {"a": 4, "b": 4})
    process = run_program("-I", bundle.code.name, "--evaluate", cwd=tmp_path)
    assert process.returncode != 0
    assert bundle.weights.name in process.stderr
    assert "Traceback" not in process.stderr
