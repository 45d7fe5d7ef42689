"""NEU-CLS, where the variable NEU_CLS_ZIP names its zip: 6 classes of 300 grey images."""

import json
import re
import shutil

import pytest
from conftest import ROOT, Bundle, run_program
from pypdf import PdfReader

from lab.record import Copies

# Long enough to pass the baseline by far, short enough for a test.
SHORT = ["epochs=8", "repeats=1", "image_size=64", "patch_size=16"]


@pytest.fixture(scope="module")
def neu(neu_zip, tmp_path_factory):
    home = tmp_path_factory.mktemp("neu")
    args = ["--student-id", "neu", "--data", neu_zip, *(part for text in SHORT for part in ("--set", text))]
    process = run_program(ROOT / "run.py", *args, cwd=home)
    assert process.returncode == 0, process.stderr
    return Bundle(home, "neu")


def test_split_is_1260_to_540_with_the_two_copies_on_one_side(neu):
    facts = neu.record.data
    assert set(facts.counts["train"].values()) == {210}
    assert set(facts.counts["test"].values()) == {90}
    copies = ["patches/patches_101.jpg", "patches/patches_105.jpg"]
    assert facts.same_pixels == Copies(1, copies)
    split = json.loads((neu.run / "dataset_split" / "split.json").read_text())
    assert sorted(len(set(copies) & set(split[side])) for side in ("train", "test")) == [0, 2]


def test_eight_epochs_pass_the_baseline(neu):
    results = neu.record.results
    assert results.accuracy > 0.65
    assert results.total == 540


def test_24_examples_and_the_accuracy_are_in_the_pdf(neu):
    shown, results = neu.record.shown, neu.record.results
    assert len(shown.examples) == 24
    text = " ".join(page.extract_text() for page in PdfReader(neu.pdf).pages)
    found = re.findall(r"true: [\w-]+\s+predicted: [\w-]+\s+confidence", text)
    assert len(found) == 24 + len(shown.mistakes) == 32
    assert f"{results.correct} of 540" in text


def test_the_submitted_code_alone_prints_the_pdfs_accuracy(neu, neu_zip, tmp_path):
    shutil.copy(neu_zip, tmp_path / "dataset.zip")
    for path in (neu.code, neu.weights):
        shutil.copy(path, tmp_path)
    process = run_program("-I", neu.code.name, "--evaluate", cwd=tmp_path)
    results = neu.record.results
    line = f"Average test loss: {results.loss:.4f} Accuracy: {results.correct}/540"
    assert line in process.stdout, process.stderr
