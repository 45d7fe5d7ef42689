"""The model as ONNX: `run.py --onnx`."""

import csv
import importlib.util
import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, call, refused, run_program
from PIL import Image

from lab import export
from lab.errors import InputError


@pytest.fixture(scope="module")
def exported(bundle, tmp_path_factory):
    """A bundle with its ONNX file, and the file's path."""
    made = bundle.copy_to(tmp_path_factory.mktemp("onnx"))
    assert call(*made.args, "--report-only", "--onnx", "--quiet") == 0
    return made, made.folder / "0812345_Lab8_Homework.onnx"


def stated(bundle):
    """{file: confidences} of the run's own predictions."""
    with open(bundle.run / "predictions.csv", newline="", encoding="utf-8") as file:
        return {row[0]: [float(value) for value in row[3:]] for row in list(csv.reader(file))[1:]}


def test_it_answers_as_the_report_does_for_one_picture_and_for_many(exported):
    bundle, path = exported
    session = onnxruntime.InferenceSession(path)
    files = stated(bundle)
    pixels = [np.asarray(Image.open(bundle.run / "dataset_split" / "test" / file)) for file in files]
    pixels = [np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BILINEAR)) for p in pixels]
    pixels = np.stack(pixels)[:, None]
    for part, expected in ((pixels, list(files.values())), (pixels[:1], list(files.values())[:1])):
        (found,) = session.run(None, {"pixels": part})
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_it_is_one_valid_file_that_says_what_it_takes(exported):
    bundle, path = exported
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 18
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["classes"]) == bundle.record.data.classes
    assert "grey, resized to 32 x 32, bilinear" in about["pixels"]
    assert not list(path.parent.glob("*.data"))


def test_the_readme_s_program_runs_without_pytorch(exported, tmp_path):
    bundle, path = exported
    (program,) = re.findall(
        r"```python\n(import json.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    assert sum(bool(line.strip(" )")) for line in program.splitlines()) <= 12
    (tmp_path / "ask.py").write_text("import sys; sys.modules['torch'] = None\n" + program, encoding="utf-8")
    file, confidences = next(iter(stated(bundle).items()))
    done = run_program("ask.py", path, bundle.run / "dataset_split" / "test" / file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name, confidence = done.stdout.split()
    assert name == bundle.record.data.classes[int(np.argmax(confidences))]
    assert float(confidence) == pytest.approx(max(confidences), abs=1e-4)


def test_what_cannot_be_exported_is_told_in_a_line(copy, capsys, monkeypatch):
    with pytest.raises(InputError, match="--onnx 3: PyTorch can"):
        export.write_onnx(copy.folder, "0812345", 3)
    assert "--onnx 0: an opset is" in refused(capsys, *copy.args, "--report-only", "--onnx", "0")
    with monkeypatch.context() as patch:
        patch.setattr(export, "NEAR", -1.0)
        with pytest.raises(InputError, match="not written"):
            export.write_onnx(copy.folder, "0812345", 18)
    assert not list(copy.folder.glob("*.onnx"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refused(capsys, *copy.args, "--report-only", "--onnx")
    assert "--onnx needs onnx, onnxscript, onnxruntime: pip install onnx onnxscript onnxruntime" in said
