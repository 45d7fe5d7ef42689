"""The whole command, as a user runs it."""

import csv
import hashlib
import json
import math
import re
import shutil
import time

import pytest
import torch
from conftest import NEU_SIZES, ROOT, TINY_ARGS, make_folder, run_program

import run
import train
from vit import ViT

RUN = ROOT / "run.py"


def refused(capsys, *args):
    """The one line that a refused call prints; exit code 2."""
    assert run.main([str(arg) for arg in args]) == 2
    said = capsys.readouterr().err
    assert said.startswith("run.py: ")
    assert said.count("\n") == 1
    return said


def test_a_bundle_has_the_three_files_and_the_run_folder(bundle):
    assert sorted(p.name for p in bundle.folder.iterdir()) == [
        "0812345_Lab8_Homework.pdf",
        "0812345_Lab8_Homework.pth",
        "0812345_Lab8_Homework.py",
        "run",
    ]
    assert {p.name for p in bundle.run.iterdir()} == {
        "confusion_matrix.csv",
        "dataset",
        "dataset_split",
        "examples",
        "history.csv",
        "inspection.npz",
        "mistakes",
        "predictions.csv",
        "record.json",
        "report.html",
        "test_samples",
        "train_samples",
        "training.log",
    }
    assert [p.name for p in bundle.folder.parent.iterdir()] == ["0812345"]  # nothing left lying about


def test_the_console_names_stages_paths_and_result(bundle):
    said = bundle.process.stdout
    for stage in ("Check", "Data", "Model", "Training", "Evaluation", "Report", "Verification"):
        assert re.search(rf"[1-7]/7  {stage}", said)
    assert re.search(r"0812345  holds: \d+ of 9 right", said)
    for path in (bundle.pdf, bundle.code, bundle.weights):
        assert str(path.relative_to(bundle.home)) in said.splitlines()
    record = json.loads((bundle.run / "record.json").read_text())
    assert f"Test accuracy {record['results']['accuracy']:.2%}" in said
    assert bundle.process.stderr == ""


def test_weights_open_safely_and_give_the_recorded_accuracy(bundle):
    record = json.loads((bundle.run / "record.json").read_text())
    weights = torch.load(bundle.weights, weights_only=True)
    model = ViT(
        image_size=32, patch_size=8, num_classes=3, dim=32, depth=2, heads=2, dim_head=16,
        mlp_dim=64, pool="mean",
    )  # fmt: skip
    model.load_state_dict(weights, strict=True)
    assert sum(p.numel() for p in model.parameters()) == record["model"]["parameters"]


def test_tables_hold_what_the_record_holds(bundle):
    record = json.loads((bundle.run / "record.json").read_text())
    rows = list(csv.DictReader((bundle.run / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 9
    right = sum(row["true"] == row["predicted"] for row in rows)
    assert right == record["results"]["correct"]
    confidence = [float(row[f"confidence {row['predicted']}"]) for row in rows]
    assert min(confidence) > 1 / 3
    history = list(csv.DictReader((bundle.run / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in history] == [1, 2, 3, 4, 5, 6]
    assert float(history[-1]["test_accuracy"]) == record["results"]["accuracy"]
    matrix = list(csv.reader((bundle.run / "confusion_matrix.csv").read_text().splitlines()))
    assert [row[0] for row in matrix[1:]] == sorted(NEU_SIZES)
    assert sum(int(matrix[i + 1][i + 1]) for i in range(3)) == right
    log = (bundle.run / "training.log").read_text()
    assert log.count("Epoch: ") == 6
    assert f"Accuracy: {right}/9" in log.splitlines()[-2]


def test_a_finished_bundle_is_only_replaced_by_force(bundle, tmp_path, capsys):
    outputs = tmp_path / "outputs"
    shutil.copytree(bundle.folder, outputs / "0812345")
    (outputs / "0812345" / "my notes.txt").write_text("keep me")
    before = {p: p.read_bytes() for p in outputs.rglob("*") if p.is_file()}
    args = [
        "--student-id",
        "0812345",
        "--data",
        bundle.home / "dataset.zip",
        "--output-dir",
        outputs,
    ]
    args += [*TINY_ARGS, "--set", "epochs=1", "--quiet"]
    assert "--force" in refused(capsys, *args)
    assert {p: p.read_bytes() for p in outputs.rglob("*") if p.is_file()} == before

    assert run.main([str(arg) for arg in [*args, "--force"]]) == 0
    assert (outputs / "0812345" / "my notes.txt").read_text() == "keep me"
    history = (outputs / "0812345" / "run" / "history.csv").read_text()
    assert len(history.splitlines()) == 2
    assert [p.name for p in outputs.iterdir()] == ["0812345"]
    assert capsys.readouterr().out.splitlines() == [
        str(outputs / "0812345" / f"0812345_Lab8_Homework.{kind}") for kind in ("pdf", "py", "pth")
    ]


def test_report_only_draws_the_pdf_again_without_training(bundle, tmp_path, capsys):
    outputs = tmp_path / "outputs"
    shutil.copytree(bundle.folder, outputs / "0812345")
    pdf = outputs / "0812345" / bundle.pdf.name
    pdf.unlink()
    process = run_program(
        RUN, "--student-id", "0812345", "--report-only", "--output-dir", outputs, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    assert pdf.read_bytes().startswith(b"%PDF")
    digest = hashlib.sha256(pdf.read_bytes()).hexdigest()
    record = json.loads((outputs / "0812345" / "run" / "record.json").read_text())
    assert record["files"][pdf.name] == digest
    (outputs / "0812345" / "run" / "record.json").write_text(
        json.dumps(record | {"recipe": {"name": "old", "values": {"epochs": 3}}})
    )
    args = ["--student-id", "0812345", "--report-only", "--output-dir", outputs]
    assert "another version" in refused(capsys, *args)
    record["schema"] = 99
    (outputs / "0812345" / "run" / "record.json").write_text(json.dumps(record))
    args = ["--student-id", "0812345", "--report-only", "--output-dir", outputs]
    assert "another version" in refused(capsys, *args)
    assert (outputs / "0812345" / bundle.weights.name).read_bytes() == bundle.weights.read_bytes()


def test_report_reads_the_record_and_never_imports_torch(bundle):
    code = "import sys, report, report.figures; assert not {'torch', 'data', 'train'} & set(sys.modules)"
    assert run_program("-c", code, cwd=ROOT).returncode == 0
    process = run_program(
        "-X", "importtime", RUN, "--student-id", "0812345", "--report-only", cwd=bundle.home
    )
    assert process.returncode == 0
    assert not re.search(r"\| +torch$", process.stderr, re.MULTILINE)


def test_a_long_training_is_announced_before_it_starts(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "LONG", 0)
    args = ["--student-id", "s3", "--data", str(bundle.home / "dataset.zip"), *TINY_ARGS, "--set", "epochs=1"]
    assert run.main([*args, "--output-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 epochs, about" in said
    assert said.index("long: Ctrl-C stops") < said.index("5/6")


def test_help_teaches_and_answers_within_a_second():
    start = time.perf_counter()
    process = run_program(RUN, "--help", cwd=ROOT)
    assert time.perf_counter() - start < 1
    for word in ("--student-id", "--data", "--set", "learning_rate", "examples:", "demo"):
        assert word in process.stdout
    process = run_program("-X", "importtime", RUN, "--help", cwd=ROOT)
    assert not re.search(r"\| +(torch|numpy|weasyprint|matplotlib)$", process.stderr, re.MULTILINE)


@pytest.mark.parametrize("student_id", ["", "a/b", "..", "a b", "-x", "läb", "x" * 65, "a\nb"])
def test_student_ids_unfit_for_file_names_are_refused(tmp_path, capsys, student_id):
    said = refused(capsys, f"--student-id={student_id}", "--output-dir", tmp_path / "o")
    assert "letters, digits" in said
    assert not (tmp_path / "o").exists()


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    make_folder(tmp_path / "one", {"only": 5})
    (tmp_path / "answers").mkdir()
    ok = ["--student-id", "s1"]
    cases = {
        "no such zip or folder": [*ok, "--data", "nowhere.zip"],
        "can't read text.zip as a zip": [*ok, "--data", "text.zip"],
        "no images": [*ok, "--data", "empty"],
        "found no two classes": [*ok, "--data", "one"],
        "no recipe is called": [*ok, "--recipe", "nope"],
        "did you mean epochs": [*ok, "--set", "epoch=1"],
        "seed must be from 0": [*ok, "--seed=-1"],
        "there is no such folder": [*ok, "--answers", "nowhere"],
        "no answers in it": [*ok, "--answers", "answers"],
        "there is no outputs": [*ok, "--report-only"],
        "can't write to --output-dir": [*ok, "--data", "one", "--output-dir", "file"],
    }
    if not torch.cuda.is_available():
        cases["--device cuda"] = [*ok, "--device", "cuda"]
    for message, args in cases.items():
        assert message in refused(capsys, *args)
    outputs = tmp_path / "outputs"
    assert not outputs.exists() or list(outputs.iterdir()) == []


def test_a_run_that_diverges_keeps_the_old_bundle(bundle, tmp_path, capsys, monkeypatch):
    def poisoned(*args):
        model = make_model(*args)
        torch.nn.init.constant_(model.cls_token, math.nan)
        return model

    make_model = train.make_model
    monkeypatch.setattr(train, "make_model", poisoned)
    outputs = tmp_path / "outputs"
    shutil.copytree(bundle.folder, outputs / "0812345")
    args = ["--student-id", "0812345", "--data", bundle.home / "dataset.zip", "--output-dir", outputs]
    assert "the training loss became nan" in refused(capsys, *args, *TINY_ARGS, "--force", "--quiet")
    assert (outputs / "0812345" / bundle.pdf.name).read_bytes() == bundle.pdf.read_bytes()
    assert [p.name for p in outputs.iterdir()] == ["0812345"]


def test_a_fault_in_the_report_does_not_cost_the_weights(bundle, tmp_path, monkeypatch, capsys):
    import report

    def fail(*args):
        raise RuntimeError("a fault")

    monkeypatch.setattr(report, "render_report", fail)
    args = ["--student-id", "s2", "--data", str(bundle.home / "dataset.zip"), *TINY_ARGS, "--quiet"]
    args += ["--set", "epochs=1", "--output-dir", str(tmp_path)]
    with pytest.raises(RuntimeError, match="a fault"):
        run.main(args)
    assert "add --report-only" in capsys.readouterr().err
    monkeypatch.undo()
    assert run.main(["--student-id", "s2", "--output-dir", str(tmp_path), "--report-only"]) == 0
    assert (tmp_path / "s2" / "s2_Lab8_Homework.pdf").is_file()
    assert (tmp_path / "s2" / "s2_Lab8_Homework.pth").is_file()


@pytest.mark.parametrize("text", ["images", "images=-1", "size=3", "image_mb=x"])
def test_limits_are_checked(capsys, tmp_path, text):
    args = ["--student-id", "1", "--data", "demo", "--output-dir", tmp_path / "o", "--quiet"]
    assert "write it as images=N, image_mb=N, total_gb=N" in refused(capsys, *args, "--limit", text)


def test_a_name_that_would_change_the_terminal_is_refused(capsys, tmp_path):
    args = ["--student-id", "1", "--data", "demo", "--output-dir", tmp_path / "o", "--quiet"]
    assert "has control characters" in refused(capsys, *args, "--name", "Lin\x1b[2J")


def test_the_demonstration_run_says_what_it_is(tmp_path, monkeypatch):
    from pypdf import PdfReader

    import data

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.synthetic, "DEFAULT_PER_CLASS", 10)
    assert run.main(["--student-id", "demo", *TINY_ARGS, "--quiet"]) == 0
    pages = [p.extract_text() for p in PdfReader("outputs/demo/demo_Lab8_Homework.pdf").pages]
    assert "Made from demonstration images" in pages[0]
    assert sum(page.count("demonstration images") for page in pages) >= 8
    record = json.loads((tmp_path / "outputs/demo/run/record.json").read_text())
    assert record["data"]["demonstration"] is True
