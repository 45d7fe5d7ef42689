"""A bundle that is what its report states holds, one that is not fails with a reason; none is run."""

import csv
import io
import json
import multiprocessing
import os
import re
import shutil
import time
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, call, make_folder, refused, run_program
from pypdf import PdfReader, PdfWriter
from pypdf.generic import (
    ArrayObject,
    DictionaryObject,
    FloatObject,
    NameObject,
    StreamObject,
    TextStringObject,
)

import verify.__main__
from lab import intake
from lab.console import Screen
from lab.files import sha256, write_csv
from lab.record import as_json
from report.submission import assemble_code_cells, submission_of
from verify import check, handed_in, verification
from verify.check import EDITED, FAILED, HOLDS, OTHER_MODEL, Work

NAMES = {kind: f"0812345_Lab8_Homework.{kind}" for kind in ("pdf", "py", "pth", "ipynb")}


@pytest.fixture(scope="module")
def work(bundle, tmp_path_factory):
    """The teacher's images, and reports drawn once each: drawing takes longer than all else."""
    scratch, drawn, draw = tmp_path_factory.mktemp("scratch"), {}, check.draw

    def draw_once(record, run):
        answers = [p.read_bytes() for p in sorted((run / "answers").iterdir())]
        key = as_json(record), str(answers), (run / "inspection.npz").stat().st_size
        if key not in drawn:
            drawn[key] = draw(record, run)
        return drawn[key]

    check.draw = draw_once
    yield Work(intake.open_source(bundle.home / "dataset.zip", scratch), scratch)
    check.draw = draw


class Doctored:
    """A bundle's three files, to change; `ran` is made by code that should not run."""

    def __init__(self, folder, bundle):
        self.folder, self.ran, self.record = folder, folder / "ran.txt", bundle.record
        for kind in ("pdf", "py", "pth"):
            setattr(self, kind, folder / NAMES[kind])
            shutil.copy(bundle.folder / NAMES[kind], folder)

    def edit(self, old, new, count=1):
        text = self.py.read_text()
        assert old in text
        self.py.write_text(text.replace(old, new.replace("RAN", repr(str(self.ran))), count))

    def change_pdf(self, change):
        writer = PdfWriter(clone_from=self.pdf)
        change(writer)
        writer.write(self.pdf)

    def attach(self, name, content):
        def change(writer):
            names = writer.root_object["/Names"]["/EmbeddedFiles"].get_object()["/Names"]
            for title, spec in zip(names[::2], names[1::2]):
                if str(title) == name or str(spec.get_object().get("/UF")) == name:
                    stream = StreamObject()
                    stream.set_data(content)
                    spec.get_object()["/EF"][NameObject("/F")] = writer._add_object(stream)
                    return
            raise LookupError(name)

        self.change_pdf(change)

    def state(self, change=lambda record: None):
        """Change the record in the PDF, which states the .pth as it is now."""
        self.record.files[NAMES["pth"]] = sha256(self.pth)
        self.record.files.pop(NAMES["pdf"], None)
        change(self.record)
        self.attach("record.json", as_json(self.record).encode())

    def carry(self, name, content):
        self.change_pdf(lambda writer: writer.add_attachment(name, content))

    def paint(self, page, operators):
        def change(writer):
            stream = StreamObject()
            stream.set_data(f"\nQ q 1 0 0 1 0 0 cm {operators} Q q\n".encode())
            target, fonts = writer.pages[page], DictionaryObject()
            helvetica = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
            fonts.update({NameObject(k): NameObject(v) for k, v in helvetica.items()})
            resources = target["/Resources"].get_object()
            resources.setdefault(NameObject("/Font"), DictionaryObject())
            resources["/Font"].get_object()[NameObject("/Fx")] = fonts
            old = target["/Contents"].get_object()
            before, parts = StreamObject(), old if isinstance(old, list) else [target.raw_get("/Contents")]
            before.set_data(b"q\n")
            stream.set_data(stream.get_data() + b"Q\n")
            added = [writer._add_object(before), *parts, writer._add_object(stream)]
            target[NameObject("/Contents")] = ArrayObject(added)

        self.change_pdf(change)

    def save(self, weights, **how):
        torch.save(weights, self.pth, **how)

    @property
    def weights(self):
        return torch.load(self.pth, weights_only=True)

    def notebook(self, change=lambda cells: cells):
        cells = [
            {"cell_type": "code", "source": c, "outputs": []}
            for c in assemble_code_cells(submission_of(self.record))
        ]
        (self.folder / NAMES["ipynb"]).write_text(json.dumps({"cells": change(cells)}))
        self.py.unlink()


@pytest.fixture
def doctored(bundle, tmp_path):
    return Doctored(tmp_path, bundle)


def annotate(writer):
    note = DictionaryObject()
    texts = {"/Type": "/Annot", "/Subtype": "/FreeText"}
    note.update({NameObject(k): NameObject(v) for k, v in texts.items()})
    note[NameObject("/Rect")] = ArrayObject(map(FloatObject, (100, 100, 300, 200)))
    note[NameObject("/Contents")] = TextStringObject("100 %")
    writer.pages[1].setdefault(NameObject("/Annots"), ArrayObject()).append(writer._add_object(note))


def add_form(writer):
    form = DictionaryObject({NameObject("/Fields"): ArrayObject()})
    writer.root_object[NameObject("/AcroForm")] = writer._add_object(form)


def act(place, name):
    """Change a PDF so that something happens as it is opened, or its first page is."""

    def change(writer):
        script = DictionaryObject({NameObject("/S"): NameObject("/JavaScript")})
        script[NameObject("/JS")] = TextStringObject("app.alert('100 %')")
        found = {"root": writer.root_object, "page": writer.pages[0]}[place]
        found[NameObject(name)] = script if place == "root" else DictionaryObject({NameObject("/O"): script})

    return change


def add_layers(writer):
    layer = DictionaryObject({NameObject("/Type"): NameObject("/OCG")})
    layer[NameObject("/Name")] = TextStringObject("x")
    shown = DictionaryObject({NameObject("/ON"): ArrayObject([writer._add_object(layer)])})
    layers = DictionaryObject({NameObject("/D"): shown, NameObject("/OCGs"): shown["/ON"]})
    writer.root_object[NameObject("/OCProperties")] = layers


def compressed(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))


class Harmful:
    def __reduce__(self):
        return open, ("ran.txt", "w")


def inflate(record):
    results = record.results
    results.correct += 1 if results.correct < results.total else -1
    results.accuracy = results.correct / results.total


def edit_last(record, **values):
    for name, value in values.items():
        setattr(record.training.history[-1], name, value)


def mine(cells):
    return [*cells, cells[0] | {"source": ["x", " = 1"]}]


VIT = "class ViT(nn.Module):"
TRUE = "BT /Fx 12 Tf 80 400 Td (Test accuracy 42.00 %) Tj ET"
PEEK = "    labels = labels.cpu()  # the labels are known\n    return"
MLP = "            x = feed_forward"
ONE = "import importlib; open(RAN, 'w')\n"
RUNS = f"{ONE}exec(open(RAN).read()); __import__('timm'); raise SystemExit(0)\nimport argparse\n"
DOCTORED = {
    # What holds
    "as it is": (lambda b: None, HOLDS, ""),
    "Windows line ends": (lambda b: b.py.write_bytes(b.py.read_bytes().replace(b"\n", b"\r\n")), HOLDS, ""),
    "a notebook": (lambda b: b.notebook(), HOLDS, ""),
    # Edited code: our model reaches the figures, the teacher reads the rest
    "label reading": (lambda b: b.edit("    return torch.cat(logits)", PEEK + " torch.cat(logits)"),
        EDITED, "1 lines"),
    "prebuilt, exec, exit": (lambda b: b.edit("import argparse\n", RUNS), EDITED, "2 lines"),
    "import *": (lambda b: b.edit("import argparse\n", "from timm.models import *\nimport argparse\n"),
        EDITED, "1 lines"),
    "endless": (lambda b: b.edit("def main", "while True: open(RAN, 'w')\ndef main"), EDITED, "1 lines"),
    "forged logits": (lambda b: b.edit("def main", "np.savez('answer.npz', logits=1)\ndef main"),
        EDITED, "lines"),
    # A comment goes on after these letters, and swallows the code behind it.
    "no MLP, by U+2028": (lambda b: b.edit(f"\n{MLP}", f"\u2028{MLP}"),
        OTHER_MODEL, "Transformer in the code"),
    "no MLP, by U+0085": (lambda b: b.edit(f"\n{MLP}", f"\x85{MLP}"),
        OTHER_MODEL, "Transformer in the code"),
    "a comment in the model": (lambda b: b.edit(VIT, f"{VIT}\n    # Mine."), EDITED, "1 lines"),
    "an edited notebook": (lambda b: b.notebook(mine), EDITED, "1 lines"),
    # Another model
    "a CNN called ViT": (lambda b: b.edit(VIT, f"{VIT}\n    net = nn.Conv2d(1, 1, 3)"),
        OTHER_MODEL, "ViT in the code"),
    "the name again": (lambda b: b.edit("def main", "ViT = torch.load\ndef main"),
        OTHER_MODEL, "ViT in the code"),
    "its forward": (lambda b: b.edit("def main", "Attention.forward = id\ndef main"),
        OTHER_MODEL, "Attention"),
    "imported": (lambda b: b.edit("import math\n", "import math\nfrom timm import x as make_model\n"),
        OTHER_MODEL, "make"),
    # Code that cannot be read
    "no Python": (lambda b: b.py.write_text("def f(:"), FAILED, "not a Python program"),
    "nested": (lambda b: b.py.write_text("(" * 100_000), FAILED, "not a Python program"),
    "not UTF-8": (lambda b: b.py.write_bytes(b"\xff\xfe"), FAILED, "no UTF-8 text"),
    "huge": (lambda b: b.py.write_bytes(b"#" * 2**21), FAILED, "has 2 MB"),
    "no settings": (lambda b: b.py.write_text("import this"), FAILED, "no SETTINGS"),
    "computed settings": (lambda b: b.edit("depth=2", "depth=open(RAN, 'w')"), FAILED, "no SETTINGS"),
    "impossible settings": (lambda b: b.edit("depth=2", "depth=9999"), FAILED, "depth must be from"),
    "no notebook": (lambda b: b.notebook(lambda c: "[" * 10**5), FAILED, "no notebook"),
    "other settings": (lambda b: b.edit("epochs=6", "epochs=600"), FAILED, "not the report's: epochs"),
    "another split": (lambda b: b.edit("split_seed=42", "split_seed=7"),
        FAILED, "split seed 7, where the assignment has 42"),
    "another's code": (lambda b: b.edit("0812345", "777", -1), FAILED, "the code is that of student 777"),
    # Weights
    "no weights": (lambda b: b.pth.unlink(), FAILED, "there is no 0812345_Lab8_Homework.pth"),
    "other weights": (lambda b: b.save({k: 0 * v for k, v in b.weights.items()}),
        FAILED, ".pth is not the file"),
    "other weights, stated": (
        lambda b: (b.save({k: 0 * v for k, v in b.weights.items()}), b.state()),
        FAILED, "loss: measured 1.0986, the PDF states",  # ln 3: all classes equally likely
    ),
    "not numbers": (lambda b: (b.save({k: v / 0 for k, v in b.weights.items()}), b.state()),
        FAILED, "not numbers"),
    "another shape": (lambda b: (b.save({"a": torch.zeros(3)}), b.state()), FAILED, "has 3 parameters"),
    "other names": (lambda b: (b.save({"a": torch.zeros(19715)}), b.state()), FAILED, "does not fit"),
    "a pickle that acts": (lambda b: b.save(Harmful()), FAILED, "do not open it otherwise"),
    "old format": (lambda b: b.save(b.weights, _use_new_zipfile_serialization=False),
        FAILED, "not plain weights"),
    "compressed": (lambda b: compressed(b.pth), FAILED, "it is compressed"),
    # The PDF
    "cut off": (lambda b: b.pdf.write_bytes(b.pdf.read_bytes()[:900]), FAILED, "the PDF cannot be read"),
    "saved anew": (lambda b: b.change_pdf(lambda w: w.root_object.pop("/Names")),
        FAILED, "carries no record"),
    "no record": (lambda b: b.attach("record.json", b"{}"), FAILED, "the record in the PDF is damaged"),
    "deep record": (lambda b: b.attach("record.json", b"[" * 10**6),
        FAILED, "the record in the PDF is damaged"),
    "another's": (lambda b: b.state(lambda r: setattr(r.student, "id", "777")),
        FAILED, "the PDF is that of student 777"),
    "inflated": (lambda b: b.state(inflate), FAILED, "accuracy: measured"),
    "other images": (lambda b: b.state(lambda r: setattr(r.data, "fingerprint", "0")),
        FAILED, "(fingerprint)"),
    "false notes": (lambda b: b.state(lambda r: r.data.notes.append("100 %")), FAILED, "(notes)"),
    "a better curve": (lambda b: b.state(lambda r: edit_last(r, test_loss=0.001)),
        FAILED, "log and curve"),
    "another log": (lambda b: b.attach("training.log", b"Average test loss: 0.1\n"),
        FAILED, "log and curve"),
    "a false sentence": (lambda b: b.paint(2, TRUE), FAILED, "page 3 of the PDF"),
    "another version": (lambda b: (b.state(lambda r: setattr(r, "drawn_with", "0")), b.paint(2, TRUE)),
        FAILED, "names another version of this project"),
    "an overlay": (lambda b: b.paint(0, f"1 g 60 560 200 90 re f 0 g {TRUE}"), FAILED, "page 1 of the PDF"),
    "a covered digit": (lambda b: b.paint(0, "1 g 80 620 8 12 re f"), FAILED, "page 1 of the PDF"),
    "a note on a page": (lambda b: b.change_pdf(annotate), FAILED, "page 2 of the PDF"),
    "what nobody sees": (lambda b: b.paint(0, f"3 Tr {TRUE}"), FAILED, "page 1 of the PDF"),
    "what is hardly seen": (lambda b: b.paint(0, "0.9 g 60 20 400 20 re f"), FAILED, "page 1 of the PDF"),
    "a script at opening": (lambda b: b.change_pdf(act("root", "/OpenAction")),
        FAILED, "the PDF has an entry OpenAction"),
    "a script of a page": (lambda b: b.change_pdf(act("page", "/AA")),
        FAILED, "the PDF has an entry JavaScript"),
    "layers": (lambda b: b.change_pdf(add_layers), FAILED, "the PDF has an entry OCProperties"),
    "a form": (lambda b: b.change_pdf(add_form), FAILED, "the PDF has a form"),
    "a template": (lambda b: b.carry("answers/q06.md", b"{{ 7 * 7 }}"), HOLDS, ""),
    "carried elsewhere": (lambda b: b.carry("answers/../../ran.txt", b"x"), HOLDS, ""),
    "a page less": (lambda b: b.change_pdf(lambda w: w.remove_page(3)), FAILED, "pages, not"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOCTORED)
def test_doctored_bundles(case, doctored, work, one_thread, monkeypatch):
    change, word, said = DOCTORED[case]
    change(doctored)
    monkeypatch.chdir(doctored.folder)
    paths = {
        kind: doctored.folder / name for kind, name in NAMES.items() if (doctored.folder / name).exists()
    }
    verdict = check.check(handed_in.Files("0812345", "here", paths), work)
    told = "; ".join(verdict.reasons + verdict.remarks)
    assert (verdict.word, said in told) == (word, True), told
    assert ("another version" in told) is (case == "another version")
    assert "cannot be checked" not in told and "\n" not in told  # each is foreseen
    assert not doctored.ran.exists()


def test_own_answers_are_carried_drawn_and_told(bundle, copy, work, tmp_path):
    """With look-ups done; one that has been made to look like code is text."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "q06.md").write_text(
        "It reaches {{ results.correct }} images. {{ '{{' }} 7 * 7 }} ![two](b c.png)"
    )
    shutil.copy(bundle.run / "test_samples" / "001.jpg", mine / "b c.png")
    (mine / "q06.md").write_text((mine / "q06.md").read_text().replace("b c.png", "b%20c.png"))
    assert call(*copy.args, "--report-only", "--answers", mine, "--quiet") == 0
    paths = {"pdf": copy.pdf, "py": copy.code, "pth": copy.weights}
    verdict = check.check(handed_in.Files("0812345", "here", paths), work)
    assert (verdict.word, verdict.own) == (HOLDS, ["6"]), verdict.reasons
    text = " ".join(" ".join(page.extract_text() for page in PdfReader(copy.pdf).pages).split())
    assert f"It reaches {bundle.record.results.correct} images. {{{{ 7 * 7 }}}}" in text
    assert (
        "Written by the student: 6. In the words that come with the program: 7, 8, 9, 10a, 10b, 10c, 10d."
        in text
    )


def test_what_lies_beside_the_same_images_is_no_fault(bundle, work, tmp_path):
    """A file that a system adds, and a folder in place of the zip."""
    with zipfile.ZipFile(bundle.home / "dataset.zip") as archive:
        archive.extractall(tmp_path / "images")
    (tmp_path / "images" / "readme.txt").write_text("from the web")
    here = Work(intake.open_source(tmp_path / "images", tmp_path / "run"), tmp_path)
    paths = {kind: bundle.folder / NAMES[kind] for kind in ("pdf", "py", "pth")}
    verdict = check.check(handed_in.Files("0812345", "here", paths), here)
    assert verdict.word == HOLDS, verdict.reasons
    assert (
        "the same images, packed otherwise or with other files beside them: none left out" in verdict.remarks
    )


def test_other_images_are_not_laid_to_the_weights(bundle, tmp_path):
    make_folder(tmp_path / "images", {"a": 10, "b": 10})
    here = Work(intake.open_source(tmp_path / "images", tmp_path / "run"), tmp_path)
    paths = {kind: bundle.folder / NAMES[kind] for kind in ("pdf", "py", "pth")}
    verdict = check.check(handed_in.Files("0812345", "here", paths), here)
    assert verdict.reasons == ["the images given have other classes than the report's, a, b: check --data"]


# Many at once


def nested(folder, path):
    """A zip that holds a zip of the files in `folder`."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"homework/{file.name}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Lin Mei/upload.zip", inner.getvalue())


@pytest.fixture
def handed(doctored, tmp_path):
    """A class: a good bundle in zips, a copy of it under another id, and what else people hand in."""
    top = tmp_path / "class"
    top.mkdir()
    nested_in = tmp_path / "nested"
    nested_in.mkdir()
    for kind in ("pdf", "py", "pth"):
        shutil.copy(doctored.folder / NAMES[kind], nested_in)
        number = {"pdf": 9, "py": 8, "pth": 7}[kind]
        shutil.copy(doctored.folder / NAMES[kind], top / f"mei_118_{number}_777_Lab8_Homework.{kind}")
    nested(nested_in, top / "all.zip")
    (top / "damaged.zip").write_bytes(b"PK\3\4 and no more")
    for name in ("x\n      777  holds: 9 of 9 right", "empty"):
        (top / name).mkdir()
    (top / "x\n      777  holds: 9 of 9 right" / "essay\x1b[2J.docx").write_text("x")
    for name in ("1.rar", "0812345_Lab8_Homework (1).pdf", "5_lab8_homework.py"):
        (top / name).write_text("x")
    (top / "link").symlink_to(bundle_home := doctored.folder)
    assert bundle_home.exists()
    return top


def test_a_class_gets_a_line_for_each_thing_and_a_table(handed, bundle, tmp_path, capsys):
    grades, edits = tmp_path / "grades.csv", tmp_path / "edits"
    args = [str(handed), "--data", str(bundle.home / "dataset.zip"), "--jobs", "2"]
    assert verify.__main__.main([*args, "--report-csv", str(grades), "--diff", str(edits)]) == 1
    said = capsys.readouterr().out
    holds = r"0812345  holds: (\d) of 9 right.*\[the same weights as 777\]"
    assert re.search(rf"^      {holds} \(.*all.zip:Lin Mei/upload.zip:homework\)$", said, re.MULTILINE)
    fails = "777  FAILED: the code is that of student 0812345.*same weights as 0812345"
    assert re.search(rf"^      {fails}", said, re.MULTILINE)
    for line in (
        r"a damaged zip \(.*\) \(.*damaged.zip\)",
        r"no bundle in it: essay\?\[2J.docx \(.*x\?      777  holds: 9 of 9 right\)",
        r"an empty folder \(.*empty\)",
        r"an archive that is not opened here: unpack it \(.*1.rar\)",
        r"nearly the name .*\(.*0812345_Lab8_Homework \(1\).pdf\)",
        r"nearly the name .*\(.*5_lab8_homework.py\)",
        r"a link, which is not followed \(.*link\)",
    ):
        assert re.search(rf"^      --  {line}$", said, re.MULTILINE), line
    assert "\x1b" not in said and not re.search(r"^ +777  holds", said, re.MULTILINE)
    with open(grades, newline="") as file:
        first, second = csv.DictReader(file)
    results = bundle.record.results
    assert (first["id"], first["name"], first["verdict"]) == ("0812345", "Lin Mei <b>", "holds")
    assert first["accuracy"] == f"{results.accuracy:.4f}" and first["parameters"] == "19715"
    assert (
        "depth=2" in first["settings changed from the template"]
        and "seed" not in first["settings changed from the template"]
    )
    assert [first[f"point {n}"] for n in range(1, 11)] == ["yes"] * 10
    assert first["own answers"] == "as shipped" and first["remarks"] == "the same weights as 777"
    assert second["verdict"] == "FAILED" and "student 0812345" in second["reason"]


def test_names_with_a_platforms_words_are_put_together(tmp_path):
    for name in (
        "group_7",
        "lin_118_assign_0812345",
        "Lab 8_99_attempt_2026-11-24_5",
        "mei_1_2_6",
        "mei_LATE_1_3_6",
    ):
        for kind in ("pdf", "py") if "mei" not in name else (("py",) if "LATE" in name else ("pdf",)):
            student = name if name == "group_7" else name.rpartition("_")[2]
            (tmp_path / f"{name}_Lab8_Homework.{kind}").write_text(f"W = '{student}_Lab8_Homework.pth'")
    bundles, lines = handed_in.find_bundles(tmp_path, tmp_path)
    both = ["pdf", "py"]
    assert {b.student_id: sorted(b.paths) for b in bundles} == {
        i: both for i in ("group_7", "0812345", "5", "6")
    }
    assert len(bundles) == 4 and not lines


def test_ids_of_several_parts_are_whole_under_a_platforms_words_and_alone(tmp_path):
    for number, kind in enumerate(("pdf", "py", "pth"), 9981):
        (tmp_path / f"bob_118_{number}_bob_2_Lab8_Homework.{kind}").write_text(
            "W = 'bob_2_Lab8_Homework.pth'"
        )
    (tmp_path / "lin_mei_Lab8_Homework.pdf").write_text("alone")
    bundles, lines = handed_in.find_bundles(tmp_path, tmp_path)
    assert {b.student_id: len(b.paths) for b in bundles} == {"bob_2": 3, "lin_mei": 1}
    assert not lines


def test_where_the_results_go_is_looked_at_before_the_checks(copy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verification, "check_all", None)  # would be a traceback
    (tmp_path / "file").write_text("")
    for flag, place, wrong in (
        ("--report-csv", tmp_path / "none" / "x.csv", "there is no folder"),
        ("--report-csv", tmp_path, "it is a folder"),
        ("--diff", tmp_path / "file", "it is not a folder"),
    ):
        assert verify.__main__.main([str(copy.folder), flag, str(place)]) == 2
        assert f"{flag} {place}: {wrong}" in capsys.readouterr().err


def test_two_bundles_of_one_id_and_shared_edits_are_named_on_both():
    made = [
        check.Verdict(i, place, HOLDS, code=code)
        for i, place, code in (("1", "a", "x"), ("1", "b", None), ("2", "c", "x"))
    ]
    verification.compare_bundles(made)
    assert [v.word for v in made] == [FAILED, FAILED, HOLDS]
    assert "another bundle of this id: b" in made[0].reasons[0] and "of this id: a" in made[1].reasons[0]
    assert made[0].remarks == ["the same edited code as 2"] and made[2].remarks == [
        "the same edited code as 1"
    ]


def test_no_cell_of_the_gradebook_is_a_formula(tmp_path):
    rows = verification.gradebook([check.Verdict("1", "a", name="=HYPERLINK(1)\x1b", reasons=["-1"])])
    write_csv(tmp_path / "x.csv", verification.HEADER, rows)
    row = (tmp_path / "x.csv").read_text().splitlines()[1].split(",")
    assert row[1] == "'=HYPERLINK(1)?" and row[-1] == "'-1"


def test_a_new_report_is_not_drawn_twice_unless_something_is_not_as_it_was(copy, monkeypatch, one_thread):
    """After a run, the PDF just drawn is known by its hash; record, pictures and arrays are made anew."""
    drawn = []

    def draw(record, run):
        drawn.append(record)
        return copy.pdf.read_bytes()

    monkeypatch.setattr(check, "draw", draw)
    screen = Screen(True, 0)
    assert verification.verify_own(copy.folder, copy.record, screen)
    assert not drawn
    arrays = dict(np.load(copy.run / "inspection.npz"))
    arrays["rollout"] = arrays["rollout"][:, ::-1]
    np.savez(copy.run / "inspection.npz", **arrays)
    verification.verify_own(copy.folder, copy.record, screen)
    assert len(drawn) == 1
    copy.pdf.write_bytes(copy.pdf.read_bytes() + b"\n")  # another file, with the same pages
    verification.verify_own(copy.folder, copy.record, screen)
    assert len(drawn) == 2
    weights = torch.load(copy.weights, weights_only=True)
    weights["mlp_head.1.bias"] += 1
    torch.save(weights, copy.weights)
    assert not verification.verify_own(copy.folder, copy.record, screen)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda *_: os._exit(3), "its files ended the check (exit code 3)"),
        (lambda *_: time.sleep(60), "the check took longer than 0.5 s"),
    ],
)
def test_a_check_that_dies_or_hangs_is_that_bundles_failure(monkeypatch, act, said):
    monkeypatch.setattr(verification, "check_apart", act)
    context = multiprocessing.get_context("fork")
    verdict = verification.check_in_process(handed_in.Files("1", "here", {}), None, context, seconds=0.5)
    assert (verdict.word, verdict.reasons) == (FAILED, [said])


def test_names_in_a_zip_lead_nowhere_and_bombs_are_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../1_Lab8_Homework.pdf", "a")
        archive.writestr("/abs/1_Lab8_Homework.py", "b")
        archive.writestr("C:\\x\\2_Lab8_Homework.pth", "c")
        archive.writestr("..\\evil.txt", "d")
        archive.writestr("3_Lab8_Homework.pth", bytes(10**6))
        link = zipfile.ZipInfo("4_Lab8_Homework.pdf")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    monkeypatch.setattr(handed_in, "MAX_FILE", 10**5)
    scratch = tmp_path / "deep" / "er" / "scratch"
    scratch.mkdir(parents=True)
    bundles, lines = handed_in.find_bundles(path, scratch)
    assert [(b.student_id, sorted(b.paths)) for b in bundles] == [
        ("1", ["pdf"]),
        ("1", ["py"]),
        ("2", ["pth"]),
    ]
    everything = [p for p in tmp_path.rglob("*") if p.is_file() and p != path]
    assert len(everything) == 3 and all(scratch in p.parents for p in everything)
    told = "\n".join(f"{line.text} {line.place}" for line in lines)
    for words in ("too large to unpack", "a link, which is not followed", "no bundle in it: evil.txt"):
        assert words in told


def test_the_upload_zip_beside_its_files_counts_once(bundle, copy, tmp_path):
    assert verification.find_bundles(copy.folder, tmp_path)[0][0].student_id == "0812345"
    with zipfile.ZipFile(copy.folder / "0812345_Lab8_Homework.zip", "w") as archive:
        for path in (copy.pdf, copy.code, copy.weights):
            archive.write(path, path.name)
    bundles, lines = handed_in.find_bundles(copy.folder, tmp_path)
    assert [b.student_id for b in bundles] == ["0812345"] and not any(line.fails for line in lines)


def test_the_commands_of_both_names_refuse_in_one_line(tmp_path, capsys):
    process = run_program("-m", "verify", "--help", cwd=ROOT)
    assert process.returncode == 0 and "python -m verify handed_in --data dataset.zip" in process.stdout
    assert verify.__main__.main([str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("verify: ") and "there is no such folder or zip" in said and said.count("\n") == 1
    (tmp_path / "1_Lab8_Homework.pdf").write_text("x")
    (tmp_path / "dataset.zip").write_text("no zip")
    assert "--limit x" in refused(capsys, "--verify", tmp_path, "--limit", "x")
    assert "cannot read" in refused(capsys, "--verify", tmp_path, "--data", tmp_path / "dataset.zip")


def test_the_limits_of_the_images_hold_here_too(bundle, capsys):
    data = bundle.home / "dataset.zip"
    assert "--limit images=30" in refused(
        capsys, "--verify", bundle.folder, "--data", data, "--limit", "images=5"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "there is no such folder or zip"),
        (lambda p: p.mkdir(), "it is empty"),
        (lambda p: p.write_text("no zip"), "name a bundle's folder, a folder of many, or a zip"),
    ],
)
def test_places_without_bundles_are_refused(tmp_path, capsys, make, message):
    make(tmp_path / "here")
    assert message in refused(capsys, "--verify", tmp_path / "here")
