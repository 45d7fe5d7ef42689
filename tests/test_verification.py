"""A bundle that is what its report states holds, and one that is not fails with a reason."""

import re
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, call, refused, run_program

import verify.__main__
from lab.recipe import load_recipe
from lab.record import write_record
from verify import sandbox, verification
from verify.sandbox import SubmissionError, submitted_logits


def verdict(folder, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    (found,) = verification.find_bundles(folder, scratch)
    return verification.verify(found, None)


def test_a_folder_of_many_gets_a_line_each_and_a_table(bundle, copy, capsys):
    """One as it was handed in, one with other weights: exit code 1."""
    other = copy.folder.with_name("777")
    other.mkdir()
    for path in (copy.pdf, copy.code, copy.weights):
        shutil.copy(path, other / path.name.replace("0812345", "777"))
    weights = torch.load(copy.weights, weights_only=True)
    torch.save(
        {name: torch.zeros_like(value) for name, value in weights.items()}, other / "777_Lab8_Homework.pth"
    )

    assert call("--verify", copy.home, "--data", bundle.home / "dataset.zip") == 1

    said = capsys.readouterr().out
    right, total = re.search(r"0812345  holds: (\d+) of (\d+) right", said).groups()
    results = bundle.record.results
    assert (int(right), int(total)) == (results.correct, results.total)
    (line,) = [line for line in said.splitlines() if "777  FAILED" in line]
    assert "the .pth is not the file whose hash the PDF states" in line
    assert "loss: measured 1.0986, the PDF states" in line  # ln 3: all classes equally likely
    assert re.search(r"0812345 +[\d.]+% +holds", said)
    assert re.search(r"777 +33.33% +FAILED", said)


def test_the_upload_zip_holds_the_three_files_and_is_verified_alone(bundle, copy, tmp_path, capsys):
    assert call(*copy.args, "--report-only", "--zip", "--quiet") == 0
    capsys.readouterr()
    path = copy.folder / "0812345_Lab8_Homework.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = [p.name for p in (copy.pdf, copy.code, copy.weights)]
        assert archive.namelist() == names
        assert archive.read(names[2]) == copy.weights.read_bytes()
    # Beside its own files it counts once.
    assert [b.student_id for b in verification.find_bundles(copy.folder, tmp_path)] == ["0812345"]

    images = str(bundle.home / "dataset.zip")
    assert call("--verify", path, "--data", images) == 0
    said = capsys.readouterr().out
    assert "0812345  holds" in said
    # The command of its own says the same.
    assert verify.__main__.main([str(path), "--data", images]) == 0
    assert capsys.readouterr().out == said


def test_the_command_of_its_own_has_a_help_and_refuses_in_one_line(copy, tmp_path, capsys):
    process = run_program("-m", "verify", "--help", cwd=ROOT)
    assert process.returncode == 0 and "python -m verify handed_in --data dataset.zip" in process.stdout
    copy.code.write_text("def f(:")
    assert verify.__main__.main([str(copy.folder)]) == call("--verify", copy.folder) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and "FAILED: the .py is not a Python program" in first
    assert verify.__main__.main([str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("verify: ") and "there is no such folder or zip" in said and said.count("\n") == 1


def test_a_report_that_states_more_than_the_weights_reach_fails(copy, tmp_path):
    record = copy.record
    results = record.results
    results.correct -= 1
    results.accuracy = results.correct / results.total
    results.confusion_matrix[0][0] -= 1
    write_record(copy.run / "record.json", record)
    assert call(*copy.args, "--report-only", "--quiet") == 0

    faults = verdict(copy.folder, tmp_path).faults

    assert any(re.match(rf"correct: measured \d+, the PDF states {results.correct}", f) for f in faults)
    assert "the confusion matrix differs from the PDF's" in faults


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda b: b.pdf.unlink(), "there is no 0812345_Lab8_Homework.pdf"),
        (lambda b: b.pdf.write_bytes(b"%PDF-1.7 and nothing more"), "the PDF cannot be read"),
        (lambda b: b.code.write_text("def f(:"), "the .py is not a Python program"),
        (lambda b: b.code.write_text("import this"), "the code has no SETTINGS"),
        (lambda b: b.code.write_text("import timm\nSETTINGS = f()"), "ready-made model: timm"),
    ],
)
def test_files_that_are_not_what_they_should_be(copy, tmp_path, spoil, fault):
    spoil(copy)
    faults = verdict(copy.folder, tmp_path).faults
    assert fault in "; ".join(faults)
    assert "Traceback" not in "; ".join(faults)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from torchvision.models import vit_b_16", ["torchvision.models.vit_b_16"]),
        ("import torch\nm = torch.hub.load('a', 'b')", ["torch.hub", "torch.hub.load"]),
        ("from torch import nn\nnn.TransformerEncoder(l, 6)", ["nn.TransformerEncoder"]),
        ("from torch.nn import MultiheadAttention", ["torch.nn.MultiheadAttention"]),
        ("class Transformer: pass\nTransformer()", []),
    ],
)
def test_ready_made_models_are_found_in_code(code, found):
    assert verification.prebuilt_models(code) == found


def test_our_own_code_has_none(bundle):
    assert verification.prebuilt_models(bundle.code.read_text()) == []


SUBMISSION = """
import torch
SETTINGS = None
def make_model(settings, classes):
    {}
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, classes))
"""


def answer_of(tmp_path, line="pass", weights=None):
    """What submitted_logits gives for a linear model whose maker first runs `line`."""
    code, pth, scratch = tmp_path / "code.py", tmp_path / "w.pth", tmp_path / "scratch"
    code.write_text(SUBMISSION.format(line))
    scratch.mkdir()
    if weights is None:
        weights = {"1.weight": torch.arange(48.0).view(3, 16) / 48, "1.bias": torch.zeros(3)}
    torch.save(weights, pth)
    images = torch.arange(5 * 16, dtype=torch.uint8).view(5, 1, 4, 4)
    plain = [(name, False) for name in ("standardize", "flip", "transpose")]
    return submitted_logits(code, pth, images, 3, scratch, load_recipe("default", plain))


def test_the_logits_are_the_submitted_models(tmp_path):
    logits, parameters = answer_of(tmp_path)
    pixels = np.arange(80).reshape(5, 16) / 255 * 2 - 1
    np.testing.assert_allclose(logits, pixels @ (np.arange(48).reshape(3, 16) / 48).T, rtol=1e-4)
    assert parameters == 3 * 16 + 3


def test_code_that_does_what_a_model_need_not_is_refused_each_time(tmp_path):
    outside = tmp_path / "mine.txt"
    outside.write_text("mine")
    attempts = [
        "__import__('socket').create_connection(('127.0.0.1', 9))",
        "__import__('subprocess').run(['true'])",
        "__import__('os').system('true')",
        "__import__('os').fork()",
        f"open({str(outside)!r}, 'w')",
        f"open({str(outside)!r}, 'a')",
        f"__import__('os').remove({str(outside)!r})",
        f"__import__('os').rename({str(outside)!r}, 'here')",
        f"__import__('os').symlink('here', {str(tmp_path / 'link')!r})",
    ]
    refused = f"""
    for attempt in {attempts!r}:
        try:
            eval(attempt)
        except PermissionError as error:
            if 'not allowed' not in str(error):
                raise
        else:
            raise RuntimeError(attempt + ' was let through')
    open('inside.txt', 'w').close()
    import vit"""
    with pytest.raises(SubmissionError, match="No module named 'vit'"):  # nothing before it was let through
        answer_of(tmp_path, refused)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "the code left no logits"),
    ],
)
def test_code_that_ends_early_gives_no_logits(tmp_path, line, message):
    with pytest.raises(SubmissionError, match=message):
        answer_of(tmp_path, line)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound it")
def test_memory_is_bounded(tmp_path):
    with pytest.raises(SubmissionError, match=r"memory|alloc"):
        answer_of(tmp_path, f"torch.ones({2 * sandbox.MEMORY}, dtype=torch.uint8)")


def test_time_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    with pytest.raises(SubmissionError, match="took longer than 1 s"):
        answer_of(tmp_path, "while True: pass")


class Harmful:
    def __reduce__(self):
        return open, ("ran.txt", "w")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"1.weight": torch.full((3, 16), float("nan")), "1.bias": torch.zeros(3)},
            "logits that are not numbers",
        ),
        ({"1.weight": torch.zeros(4, 16), "1.bias": torch.zeros(4)}, "size mismatch"),
        ({"other": torch.zeros(3)}, "Missing key"),
        (Harmful(), "Weights only load failed"),
    ],
)
def test_weights_that_are_not_the_models(tmp_path, weights, message):
    with pytest.raises(SubmissionError, match=message):
        answer_of(tmp_path, weights=weights)
    assert not (tmp_path / "scratch" / "ran.txt").exists()


def test_names_in_a_zip_lead_nowhere(tmp_path):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../1_Lab8_Homework.pdf", "a")
        archive.writestr("/abs/1_Lab8_Homework.py", "b")
        archive.writestr("C:\\x\\2_Lab8_Homework.pth", "c")
        archive.writestr("..\\evil.txt", "d")
    scratch = tmp_path / "deep" / "er" / "scratch"
    scratch.mkdir(parents=True)
    found = verification.find_bundles(path, scratch)
    assert [(b.student_id, sorted(b.paths)) for b in found] == [("1", ["pdf"]), ("1", ["py"]), ("2", ["pth"])]
    everything = [p for p in tmp_path.rglob("*") if p.is_file() and p != path]
    assert len(everything) == 3 and all(scratch in p.parents for p in everything)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "there is no such folder or zip"),
        (lambda p: p.mkdir(), "no file there is called <id>_Lab8_Homework.pdf, .py or .pth"),
        (lambda p: p.write_text("no zip"), "name a bundle's folder, a folder of many, or a zip"),
    ],
)
def test_places_without_bundles_are_refused(tmp_path, capsys, make, message):
    make(tmp_path / "here")
    assert message in refused(capsys, "--verify", tmp_path / "here")
