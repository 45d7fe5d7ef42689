"""The submitted `.py`, run alone as a teacher would: beside the zip and the weights, nothing else."""

import ast
import json
import re
import shutil
import sys

import pytest
import torch
from conftest import ROOT, make_folder, run_program


@pytest.fixture
def desk(bundle, tmp_path):
    """A folder with the submitted code and weights and dataset.zip, and nothing of the project."""
    for path in (bundle.code, bundle.weights, bundle.home / "dataset.zip"):
        shutil.copy(path, tmp_path)
    return tmp_path


def scored(process):
    assert process.returncode == 0, process.stderr
    return re.findall(r"Average test loss: ([\d.]+) Accuracy: (\d+)/(\d+)", process.stdout)[-1]


def recorded(bundle):
    results = json.loads((bundle.run / "record.json").read_text())["results"]
    return f"{results['loss']:.4f}", str(results["correct"]), str(results["total"])


def test_evaluate_prints_the_very_result_of_the_report(bundle, desk):
    process = run_program("-I", desk / bundle.code.name, "--evaluate", cwd=desk)
    assert scored(process) == recorded(bundle)
    again = run_program("-I", desk / bundle.code.name, "--evaluate", cwd=desk)
    assert scored(again) == recorded(bundle)
    assert "skipping unzip" in again.stdout


def test_alone_it_trains_to_the_same_weights_and_plots(bundle, desk):
    process = run_program("-I", desk / bundle.code.name, cwd=desk)
    assert scored(process) == recorded(bundle)
    made = {p.name for p in desk.glob("*.png")}
    assert made == {
        "train_set_grid.png",
        "test_set_grid.png",
        "confusion_matrix.png",
        "example_predictions.png",
    }
    submitted = torch.load(desk / bundle.weights.name, weights_only=True)
    retrained = torch.load(desk / f"{bundle.weights.stem}_retrained.pth", weights_only=True)
    assert (desk / bundle.weights.name).read_bytes() == bundle.weights.read_bytes()
    assert all(torch.equal(submitted[name], retrained[name]) for name in submitted)


def test_it_reads_in_the_order_of_the_six_steps(bundle):
    text = bundle.code.read_text()
    steps = re.findall(r"^# Step (\d):", text, re.MULTILINE)
    assert steps == list("123456")
    order = [
        "def unzip",
        "class BatchLoader",
        "class ViT",
        "def train_epoch",
        "def fit",
        "def plot_confusion",
    ]
    assert sorted(order, key=text.index) == order
    assert not re.search(r"generated|jinja|\{\{|\{%", text, re.IGNORECASE)


def test_it_is_the_projects_own_source(bundle):
    text = bundle.code.read_text()
    for file, name in (("vit.py", "ViT"), ("train.py", "train_epoch"), ("data.py", "split_names")):
        tree = ast.parse((ROOT / file).read_text())
        node = next(n for n in tree.body if getattr(n, "name", "") == name)
        assert ast.get_source_segment((ROOT / file).read_text(), node) in text


def test_it_needs_only_the_packages_that_the_assignment_allows(bundle):
    tree = ast.parse(bundle.code.read_text())
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    # numpy and Pillow come with torchvision and matplotlib
    allowed = {"torch", "torchvision", "einops", "sklearn", "matplotlib", "numpy", "PIL"}
    assert roots - set(sys.stdlib_module_names) <= allowed


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
    assert bundle.weights.name in process.stderr
    assert "Traceback" not in process.stderr
