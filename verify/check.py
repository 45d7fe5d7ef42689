"""One bundle: its figures computed anew with our model, its report drawn anew, no line of it run."""

import dataclasses
import hashlib
import pickle
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import filelock
import msgspec
import numpy as np
import torch

import data
import train
from lab import inspection, intake
from lab.bundle import KINDS, bundle_names, file_name
from lab.errors import InputError, said, told
from lab.files import place, sha256, write_whole
from lab.machine import give_back_memory
from lab.recipe import load_recipe
from lab.record import SCHEMA, DataFacts, Record, Results, Shown
from lab.scores import score
from lab.stages import describe_model
from lab.weights import fit_model, load_weights
from report import drawing
from report.answers import ANSWERS, FILLED, QUESTIONS, answer_texts, own_answers
from report.submission import assemble_submission, submission_of
from verify.code import read_bounded, read_code
from verify.pages import PDF_BYTES, carried_files, compare_pages, open_pdf, put_answers

HOLDS, EDITED = "holds", "holds, code edited"
FAILED, OTHER_MODEL = "FAILED", "not evaluated: the model was changed"
BATCH = 32
# Figures that another machine's rounding moves, and how far; all others follow from whole numbers.
ROUNDED = {"loss", "ece", "confidence", "confidences", "mean", "least", "most", "even"}
NEAR = 2e-4


class Work(NamedTuple):
    """What the checks of all bundles share. `source`: an intake.Source, or None for each run's own images;
    `labels`: the table that its classes are read from, or None; `drawn`: the SHA-256 of a PDF that this
    process has just drawn from its record and the files in the bundle's run."""

    source: intake.Source | None
    scratch: Path
    threads: int | None = None
    labels: str | None = None
    drawn: str | None = None


@dataclass
class Verdict:
    """What is said of a bundle. `weights` and `code` are digests, the second of edited code alone."""

    student_id: str
    place: str
    word: str = FAILED
    reasons: list = field(default_factory=list)
    remarks: list = field(default_factory=list)
    name: str = ""
    correct: int | None = None
    total: int | None = None
    loss: float | None = None
    parameters: int | None = None
    settings: str = ""  # those that are not the template's
    rubric: list = field(default_factory=list)  # whether points 1 to 10 are there
    own: list = field(default_factory=list)  # the questions answered in the student's words
    weights: str | None = None
    code: str | None = None
    diff: list = field(default_factory=list)


def check(bundle, work):
    """The Verdict on one bundle; whatever goes wrong is its FAILED."""
    verdict = Verdict(bundle.student_id, bundle.place)
    try:
        with tempfile.TemporaryDirectory(dir=work.scratch) as run:
            _check(bundle, work, Path(run), verdict)
    except InputError as error:
        verdict.reasons.append(str(error))
    except Exception as error:  # a stranger's file can raise nearly anything
        verdict.reasons.append(f"cannot be checked ({type(error).__name__}: {said(error)})")
    else:
        if not verdict.reasons:
            verdict.word = EDITED if verdict.diff else HOLDS
    return verdict


def _check(bundle, work, run, verdict):
    """Fill the verdict; `run` is an empty folder. InputError where no more can be checked."""
    code = _check_code(bundle, verdict)
    weights, verdict.weights = load_weights(bundle.paths["pth"])
    pdf = open_pdf(read_bounded(bundle.paths["pdf"], PDF_BYTES))
    record, log = read_carried(pdf, run)
    verdict.name = record.student.name or ""
    _check_stated(record, code, bundle, verdict)
    _check_rubric(run, code, verdict)
    if code.model_changed:
        verdict.word = OTHER_MODEL
        raise InputError(f"{', '.join(code.model_changed)} in the code differ from this project's")
    if verdict.reasons:  # another student's, or other settings: no figure would tell more
        return
    images, own = read_images(bundle, work, record, run, verdict)
    give_back_memory()  # of the decoding
    if images.test.classes != record.data.classes:
        classes = ", ".join(images.test.classes)[:200]
        raise InputError(f"the images given have other classes than the report's, {classes}: check --data")
    model = fit_model(weights, code.submission.recipe, len(images.test.classes))
    measured = measure(model, images, code.submission.recipe, record, run)
    results = measured.results
    verdict.correct, verdict.total, verdict.loss = results.correct, results.total, results.loss
    verdict.parameters = measured.model.parameters
    agreed = _agree_on(record, measured, own, log, verdict)
    mine = own_answers(agreed, answer_texts(agreed, run / "answers"))
    verdict.own = [number for key, number, _ in QUESTIONS if key in mine]
    if not verdict.reasons and not _is_drawn_from(agreed, record, bundle, run, work.drawn):
        verdict.reasons += compare_pages(pdf, open_pdf(draw(agreed, run)))
        if verdict.reasons and record.drawn_with != drawing():
            verdict.reasons.append("its record names another version of this project: check it with that one")
    drawn = not verdict.reasons
    verdict.rubric[3:5] = [verdict.rubric[3] and drawn, drawn]


def _check_code(bundle, verdict):
    """The Code of a bundle whose files are there. InputError where there is none to go on with."""
    names = {kind: file_name(bundle.student_id, kind) for kind in KINDS}
    if "ipynb" in bundle.paths:
        names.pop("py")
    if missing := [name for kind, name in names.items() if bundle.paths.get(kind) is None]:
        raise InputError(f"there is no {', '.join(missing)}")
    code = read_code(bundle.paths.get("py") or bundle.paths["ipynb"])
    verdict.code = code.digest and hashlib.sha256(code.digest.encode()).hexdigest()
    verdict.diff = code.diff
    if code.diff:
        lines = sum(line[0] in "+-" for line in code.diff[2:])
        verdict.remarks.append(f"{lines} lines of code differ from what this project writes")
    template = load_recipe("assignment").as_dict()
    changed = {n: v for n, v in code.submission.recipe.as_dict().items() if v != template[n]}
    verdict.settings = " ".join(f"{name}={value}" for name, value in changed.items())
    if (seed := changed.get("split_seed")) is not None:
        verdict.remarks.append(f"split seed {seed}, where the assignment has {template['split_seed']}")
    return code


def read_carried(pdf, run):
    """(Record, log) that a PDF carries; its files are put into the folder `run`. InputError without them."""
    files = carried_files(pdf)
    if not {"record.json", "training.log"} <= files.keys():
        raise InputError("the PDF carries no record: this project did not draw it, or it was saved anew")
    try:
        record = msgspec.json.decode(files["record.json"], type=Record)
        log = files["training.log"].decode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"the record in the PDF is damaged ({error})") from None
    if record.schema != SCHEMA:
        raise InputError("the record in the PDF was written by another version of this project")
    put_answers(files, run)
    (run / "training.log").write_text(log, encoding="utf-8")
    return record, log


def _settings(submission):
    """All that a Submission states but its id, by name."""
    values = submission._asdict()
    return values.pop("recipe").as_dict() | {name: values[name] for name in values if name != "id"}


def _check_stated(record, code, bundle, verdict):
    """Reasons against what the record in the PDF says of its student, its settings and its files."""
    submission, faults = code.submission, verdict.reasons
    if submission.id != bundle.student_id:
        faults.append(f"the code is that of student {submission.id}")
    if record.student.id != bundle.student_id:
        faults.append(f"the PDF is that of student {record.student.id}")
    stated, written = _settings(submission_of(record)), _settings(submission)
    if other := [name for name in stated if stated[name] != written[name]]:
        faults.append(f"settings in the code are not the report's: {', '.join(other)}")
    _, name, weights = bundle_names(record.student.id)  # a renamed file is still that file
    allowed = [hashlib.sha256(assemble_submission(submission).encode()).hexdigest()]
    allowed += [sha256(bundle.paths["py"])] if bundle.paths.get("py") else []
    if record.files.get(name) not in allowed and not faults:
        faults.append("the .py is not the file whose hash the PDF states")
    if record.files.get(weights) != sha256(bundle.paths["pth"]):
        faults.append("the .pth is not the file whose hash the PDF states")
    choices = msgspec.to_builtins(record.data.choices)
    if any(choices.values()):
        flags = ", ".join(f"{key} {value}" for key, value in choices.items() if value)
        verdict.remarks.append(f"its record says how the images are to be read: {flags}")


def _check_rubric(run, code, verdict):
    """Note which points of the rubric are there; 4 and 5 hold once the pages do."""
    texts = {}
    for key, *_ in QUESTIONS:
        own = run / "answers" / f"{key}{FILLED}"
        texts[key] = (own if own.is_file() else ANSWERS / f"{key}.md").read_bytes().strip()
    there = [name in code.names for name in ("fit", "evaluate", "plot_confusion_matrix")]
    points = ("q06", "q07", "q08", "q09", "q10")
    answered = [all(text for key, text in texts.items() if key.startswith(point)) for point in points]
    verdict.rubric = [not code.model_changed, *there, False, *answered]


# What is computed anew


def read_images(bundle, work, record, run, verdict):
    """(Images, whether they are the bundle's own), read as its record says; their split is put into `run`.

    Decoded once for all bundles that look at the same ones in the same way. InputError if there are none.
    """
    source, recipe = work.source, record.recipe.values
    choices = dataclasses.replace(record.data.choices, labels=work.labels)  # not a file that a stranger names
    if own := source is None:
        folder = bundle.run / "dataset_split" if bundle.run else None
        if folder is None or not folder.is_dir() or folder.is_symlink():
            raise InputError("not evaluated: give the images with --data dataset.zip")
        source = intake.Source(folder, "folder", folder.name)
        verdict.remarks.append("measured on the images beside it")
    key = repr((str(source.folder), recipe.image_size, recipe.channels, recipe.split_seed, choices))
    home = work.scratch / f"images-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    with filelock.FileLock(home.with_suffix(".lock")):
        if not (home / "images.pickle").exists():
            home.mkdir(exist_ok=True)
            if own and record.data.from_split:
                images = read_split(source.folder, record, home / "dataset_split")
            else:
                images = intake.read_images(source, recipe, home / "dataset_split", choices=choices)
            # The test images first, side by side: in the file that is mapped below they alone are looked at.
            first, rest, pixels = images.test.rows, images.train.rows, images.test.pixels.numpy()
            with open(home / "pixels", "wb") as file:
                for row in torch.cat([first, rest]).tolist():
                    pixels[row].tofile(file)
            rows = torch.arange(len(first) + len(rest))
            images.test.rows, images.train.rows = rows[: len(first)], rows[len(first) :]
            images.train.pixels = images.test.pixels = None
            write_whole(home / "images.pickle", pickle.dumps(images))
    images = pickle.loads((home / "images.pickle").read_bytes())  # written here
    pixels = torch.from_numpy(np.memmap(home / "pixels", np.uint8, "r+"))
    pixels = pixels.view(-1, recipe.channels, recipe.image_size, recipe.image_size)
    images.train.pixels = images.test.pixels = pixels
    shutil.copytree(home / "dataset_split", run / "dataset_split", copy_function=place)
    return images, own


def read_split(folder, record, target):
    """The Images of a run's own split that no rule gives again: as it lies there, with the record's facts."""
    decode = intake.Decoder(lambda: None, record.data.pixel_range)
    with told():
        both = data.load_split(folder, record.recipe.values, partial(data.read_pixels, decode=decode))
    shutil.copytree(folder, target, copy_function=place)
    return intake.Images(*both, record.data)


def measure(model, images, recipe, record, run):
    """The record with everything in it that follows from the weights and the images, computed here."""
    test = images.test
    loader = data.BatchLoader(test, dataclasses.replace(recipe, batch_size=BATCH), torch.device("cpu"))
    logits = train.predict(model, loader, recipe)[0].numpy()
    if not np.isfinite(logits).all():
        raise InputError("the weights give logits that are not numbers")
    results = score(logits, test.labels.numpy(), test.classes, test.files)
    return dataclasses.replace(
        record,
        data=images.facts,
        model=describe_model(model),
        results=results,
        shown=inspection.look_into(model, images, results.predictions, recipe, run),
    )


def agree(stated, measured, path=""):
    """(value, [(path, stated, measured)] that differ): what was stated, where rounding explains it."""
    match measured, stated:
        case dict(), dict() if stated.keys() == measured.keys():
            pairs = {key: agree(stated[key], value, f"{path}.{key}") for key, value in measured.items()}
            value, parts = {key: pair[0] for key, pair in pairs.items()}, pairs.values()
        case [*_], [*_] if len(stated) == len(measured):
            parts = [agree(*both, path) for both in zip(stated, measured)]
            value = [part[0] for part in parts]
        case _:
            floats = isinstance(measured, float) and isinstance(stated, float)
            near = NEAR * (1 + abs(measured)) if floats and path.rpartition(".")[2] in ROUNDED else 1e-9
            same = abs(stated - measured) <= near if floats else stated == measured
            return (stated, []) if same else (measured, [(path, stated, measured)])
    return value, [different for part in parts for different in part[1]]


FROM_USER = ("source", "name", "choices")  # facts of the data that the images do not tell
BESIDE = ("left_out", "from_split")  # what lay beside the images, and how they were packed
FROM_SPLIT = ("classes", "counts", "split", "fingerprint", "pixel_range")  # those that a run's split tells


def _agree_on(record, measured, own, log, verdict):
    """The record to be drawn: measured, but with what was stated where that is the same but for rounding.

    Reasons for what is not the same. Of the images beside a bundle itself only the split is compared.
    """
    values, different = {}, []
    for part, kind in (("results", Results), ("shown", Shown)):
        value, unlike = agree(*(msgspec.to_builtins(getattr(r, part)) for r in (record, measured)))
        values[part], different = msgspec.convert(value, kind), different + unlike
    stated, found = (msgspec.to_builtins(r.data) for r in (record, measured))
    found["demonstration"] |= stated["demonstration"]
    found |= {name: stated[name] for name in (FROM_USER if not own else stated.keys() - set(FROM_SPLIT))}
    # The same images from another zip: a .DS_Store more is no fault.
    if found["fingerprint"] == stated["fingerprint"] and any(found[name] != stated[name] for name in BESIDE):
        found |= {name: stated[name] for name in BESIDE}
        rows = "; ".join(row.told for row in record.data.left_out)[:200] or "none left out"
        verdict.remarks.append(f"the same images, packed otherwise or with other files beside them: {rows}")
    if other := [name for name in found if found[name] != stated[name]]:
        verdict.reasons.append(f"the images are others than the report's, or read otherwise ({other[0]})")
    counted = record.model.parameters, measured.model.parameters
    different += [("parameters", *counted)] if counted[0] != counted[1] else []
    _check_training(record, measured, log, verdict)
    for path, stated, value in different[:4]:
        words = f"measured {_short(value)}, the PDF states {_short(stated)}"
        verdict.reasons.append(f"{path.lstrip('.')}: {words}")
    verdict.reasons += [f"{len(different) - 4} other figures differ"] * (len(different) > 4)
    return dataclasses.replace(measured, data=msgspec.convert(found, DataFacts), **values)


def _check_training(record, measured, log, verdict):
    """A reason where log and curve, which cannot be measured again, differ or end with other figures."""
    history, results = record.training.history, measured.results
    scored = re.findall(r"^Average test loss: ([\d.]{1,20}) Accuracy: (\d{1,9})/(\d{1,9})", log, re.MULTILINE)
    logged = [(float(loss), int(correct) / max(int(total), 1)) for loss, correct, total in scored]
    shown = [(row.test_loss, row.test_accuracy) for row in history] + [(results.loss, results.accuracy)]
    same = len(scored) == len(history) == record.recipe.values.epochs
    if not (same and np.allclose([*logged, *logged[-1:]], shown, rtol=0, atol=(NEAR, 1e-9))):
        said = "log and curve of the training in the PDF do not end with the report's figures"
        verdict.reasons.append(said)


def _short(value):
    return f"{value:.4f}" if isinstance(value, float) else str(value)[:60]


def _is_drawn_from(agreed, record, bundle, run, drawn):
    """Whether the PDF is the one just drawn, from the same record, pictures and arrays as were measured now:
    then it need not be drawn again."""
    if drawn != sha256(bundle.paths["pdf"]):
        return False
    shown = agreed.shown
    pictured = [*shown.examples, *shown.mistakes, *shown.train_samples, *shown.test_samples]
    files = [shown.arrays, *(entry.picture for entry in pictured)]
    same = all(sha256(run / name) == sha256(bundle.run / name) for name in files)
    return same and msgspec.to_builtins(agreed) == msgspec.to_builtins(record)


def draw(record, run):
    """The PDF of a record, from the pictures and arrays that were made in `run`, and the answers there."""
    from report.render import render_report

    return render_report(record, run, run / "answers")[0]


def check_apart(bundle, work):
    """The Verdict on one bundle in a process of its own, which takes its share of the cores."""
    torch.set_num_threads(work.threads or torch.get_num_threads())
    return check(bundle, work)
