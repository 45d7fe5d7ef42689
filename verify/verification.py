"""Whether a bundle is what its report says: `run.py --verify`.

The images are split and labelled here. The submitted model gives its logits in a process of its own
(sandbox.py), and the scores computed from them are compared with the text of the PDF.
"""

import ast
import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from lab import intake
from lab.bundle import KINDS, STUDENT_ID, bundle_names
from lab.errors import InputError
from lab.files import sha256
from lab.recipe import Recipe
from lab.scores import score
from verify.sandbox import SubmissionError, submitted_logits

FILE = re.compile(rf"({STUDENT_ID})_Lab8_Homework\.({'|'.join(KINDS)})")
MAX_BYTES = 2**31  # of one file in a zip
MAX_BUNDLES = 1000
# Names that bring a ready-made transformer.
PREBUILT_MODULES = ("timm", "transformers", "vit_pytorch", "open_clip", "torchvision.models", "torch.hub")
PREBUILT_NAMES = (
    "MultiheadAttention",
    "Transformer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "VisionTransformer",
)


class Files(NamedTuple):
    """A bundle as it was found."""

    student_id: str
    place: str  # where, for messages
    paths: dict  # {"pdf": Path, "py": Path, "pth": Path}, those that are there
    run: Path | None  # the run folder with its record, if it lies beside them


class Verdict(NamedTuple):
    student_id: str
    place: str
    faults: list  # one line each; none: the bundle holds
    correct: int | None
    total: int | None


def find_bundles(path, scratch):
    """All bundles at `path`: a folder of one or many, or a zip of one or many, zips in folders too.

    Zips are unpacked under `scratch`. InputError if there is nothing, or no bundle in it.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"--verify {path}: there is no such folder or zip")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise InputError(f"--verify {path}: name a bundle's folder, a folder of many, or a zip")
    files = [] if path.is_file() else list(_walk(path))
    zips = [path] if path.is_file() else [file for file in files if file.suffix.lower() == ".zip"]
    found = {}
    for file in files:
        if match := FILE.fullmatch(file.name):
            found.setdefault((str(file.parent), match[1]), {})[match[2]] = file
    for i, archive in enumerate(zips):
        for place, student_id, kind, file in _unpack(archive, scratch / f"zip{i}"):
            found.setdefault((place, student_id), {})[kind] = file
    if not found:
        raise InputError(f"--verify {path}: no file there is called <id>_Lab8_Homework.pdf, .py or .pth")
    if len(found) > MAX_BUNDLES:
        raise InputError(f"--verify {path}: more than {MAX_BUNDLES} bundles; give a part of them")
    # The upload zip beside its own three files is no second bundle, unless it holds other files.
    for place, student_id in list(found):
        beside = found.get((str(Path(place).parent), student_id)) if place.endswith(".zip") else None
        if beside and _hashes(beside) == _hashes(found[place, student_id]):
            del found[place, student_id]
    bundles = []
    for (place, student_id), paths in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        run = next(iter(paths.values())).parent / "run"
        bundles.append(Files(student_id, place, paths, run if (run / "record.json").is_file() else None))
    return bundles


def _hashes(paths):
    """{kind: SHA-256} of a bundle's files."""
    return {kind: sha256(path) for kind, path in paths.items()}


def _walk(folder):
    """The files below `folder`, sorted, without run folders, hidden ones and what links lead to."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and path.name not in ("run", "latex"):
            yield from _walk(path)


def _unpack(archive, folder):
    """The bundle files of a zip: yields (place, student id, kind, path). Only names that fit are unpacked,
    under names of ours, so that no path in the zip leads anywhere."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for i, entry in enumerate(opened.infolist()):
                *parents, name = entry.filename.replace("\\", "/").split("/")
                match = FILE.fullmatch(name)
                if not match or "__MACOSX" in parents:
                    continue
                if entry.file_size > MAX_BYTES:
                    raise InputError(f"{archive}: {name} is larger than {MAX_BYTES / 1e9:.0f} GB")
                place = folder / f"{i}"
                place.mkdir(parents=True)
                with opened.open(entry) as source, open(place / name, "wb") as target:
                    left = entry.file_size
                    while chunk := source.read(min(left, 2**20)):
                        target.write(chunk)
                        left -= len(chunk)
                inside = "/".join(parents)
                yield f"{archive}{':' + inside if inside else ''}", match[1], match[2], place / name
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        raise InputError(f"cannot read {archive} as a zip ({error})") from None


def read_report(pdf):
    """What a report states, as text: {"loss", "accuracy", "correct", "total", "parameters", "fingerprint",
    "matrix" (in words), "hashes"}, each None where the PDF does not hold it. InputError if it is no PDF."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(pdf)
        text = " ".join(" ".join(page.extract_text() for page in reader.pages).split())
        figures = list(_alternatives(reader.trailer["/Root"].get("/StructTreeRoot")))
    except (PyPdfError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"the PDF cannot be read ({type(error).__name__})") from None

    def stated(pattern):
        match = re.search(pattern, text)
        return match[1].replace(",", "") if match else None

    scores = re.search(
        r"a test loss of ([\d.]+) and a test accuracy of ([\d.]+) % \((\d+) of (\d+) images\)", text
    )
    return dict(zip(("loss", "accuracy", "correct", "total"), scores.groups() if scores else [None] * 4)) | {
        "parameters": stated(r"the model has ([\d,]+) parameters"),
        "fingerprint": stated(r"Data fingerprint ([0-9a-f]{64})"),
        "matrix": next((alt for alt in figures if alt.startswith("Confusion matrix of ")), None),
        "hashes": dict(re.findall(r"(\S+_Lab8_Homework\.(?:py|pth)) ([0-9a-f]{64})", text)),
    }


def _alternatives(node):
    """The alternative texts in a PDF's structure tree."""
    waiting = [] if node is None else [node]
    while waiting:
        node = waiting.pop().get_object()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if "/Alt" in node:
                yield str(node["/Alt"])
            if "/K" in node:
                waiting.append(node["/K"])


def prebuilt_models(code):
    """The ready-made transformers that a program's text names, in order. SyntaxError if it is no Python."""
    found = []
    for node in ast.walk(ast.parse(code)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            in_module = any(name == m or name.startswith(m + ".") for m in PREBUILT_MODULES)
            if in_module or ("." in name and name.rpartition(".")[2] in PREBUILT_NAMES):
                found.append(name)
    return sorted(set(found))


def submitted_recipe(code):
    """The Recipe in SETTINGS of a submitted program's text, which is not run. InputError if there is none."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SETTINGS":
            try:
                return Recipe(**{k.arg: ast.literal_eval(k.value) for k in node.value.keywords})
            except (AttributeError, TypeError, ValueError) as error:
                raise InputError(f"SETTINGS in the code cannot be read: {error}") from None
    raise InputError("the code has no SETTINGS")


def verify(bundle, images_folder):
    """The Verdict on one bundle. `images_folder`: the images, or None for those of the bundle's own run."""
    faults, scores = [], (None, None)
    try:
        scores = _check(bundle, images_folder, faults)
    except (InputError, SubmissionError) as error:
        faults.append(str(error))
    return Verdict(bundle.student_id, bundle.place, faults, *scores)


def _check(bundle, images_folder, faults):
    """Add to `faults`; -> (correct, total). InputError or SubmissionError where no more can be checked."""
    missing = [n for n, kind in zip(bundle_names(bundle.student_id), KINDS) if kind not in bundle.paths]
    if missing:
        raise InputError(f"there is no {', '.join(missing)}")
    try:
        code = bundle.paths["py"].read_text(encoding="utf-8")
        prebuilt = prebuilt_models(code)
    except (SyntaxError, ValueError, OSError, RecursionError) as error:
        raise InputError(f"the .py is not a Python program ({error})") from None
    if prebuilt:
        faults.append(f"the code uses a ready-made model: {', '.join(prebuilt)}")

    stated = read_report(bundle.paths["pdf"])
    hashes = _hashes(bundle.paths)
    for kind in ("py", "pth"):
        if stated["hashes"].get(bundle.paths[kind].name) != hashes[kind]:
            faults.append(f"the .{kind} is not the file whose hash the PDF states")
    if bundle.run:
        faults += _against_record(bundle, hashes)
    results, parameters, fingerprint = _measure(bundle, submitted_recipe(code), images_folder)
    if fingerprint != stated["fingerprint"]:
        faults.append("the images are others than the report's")
    faults += _differences(stated, results, parameters)
    return results.correct, results.total


def _measure(bundle, recipe, images_folder):
    """(Results, parameters, fingerprint of the images) of the submitted model, on a split made here."""
    folder = images_folder or (bundle.run / "dataset_split" if bundle.run else None)
    if folder is None or not folder.is_dir():
        raise InputError("not evaluated: give the images with --data dataset.zip")
    with tempfile.TemporaryDirectory() as scratch:
        source = intake.Source(folder, "folder", folder.name)
        images = intake.read_images(source, recipe, Path(scratch) / "split")
        test = images.test
        logits, parameters = submitted_logits(
            bundle.paths["py"],
            bundle.paths["pth"],
            test.pixels[test.rows],
            len(test.classes),
            scratch,
            recipe,
        )
    results = score(logits, test.labels.numpy(), test.classes, test.files)
    return results, parameters, images.facts.fingerprint


def _differences(stated, results, parameters):
    """Faults: where what the PDF states is not what was measured."""
    from report.figures import confusion_words

    measured = {
        "loss": f"{results.loss:.4f}",
        "accuracy": f"{results.accuracy:.2%}".rstrip("%"),
        "correct": str(results.correct),
        "total": str(results.total),
        "parameters": str(parameters),
        "matrix": confusion_words(results.confusion_matrix, list(results.per_class)),
    }
    faults = []
    for what, value in measured.items():
        # Another machine's rounding may move the last of the digits shown.
        near = what == "loss" and stated[what] and abs(float(stated[what]) - results.loss) < 2e-4
        if stated[what] == value or near:
            continue
        if what == "matrix":
            faults.append("the confusion matrix differs from the PDF's")
        else:
            shown = "does not state it" if stated[what] is None else f"states {stated[what]}"
            faults.append(f"{what}: measured {value}, the PDF {shown}")
    return faults


def _against_record(bundle, hashes):
    """Faults of the files, whose hashes these are, against the run record beside them."""
    try:
        recorded = json.loads((bundle.run / "record.json").read_text(encoding="utf-8"))["files"]
        return [
            f"the .{kind} is not the file in run/record.json"
            for kind, path in bundle.paths.items()
            if recorded[path.name] != hashes[kind]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"run/record.json cannot be read ({type(error).__name__})"]


def _show(verdict, screen):
    if verdict.faults:
        said = f"FAILED: {'; '.join(verdict.faults)} ({verdict.place})"
    else:
        said = (
            f"holds: {verdict.correct} of {verdict.total} right; loss, confusion matrix, parameters and "
            "hashes are those in the PDF"
        )
    screen.say(f"{verdict.student_id}  {said}", "red" if verdict.faults else "green")


def verify_all(path, source, screen):
    """Check all bundles at `path` on the images at `source`, a zip or folder.

    None: each on its own run's, or dataset.zip or dataset/ in the working folder if one has no run.

    A line for each, and a table where there are many. -> exit code: 0 if all hold, else 1. InputError
    as `find_bundles` and data.open_source raise it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        bundles = find_bundles(path, scratch)
        if source is None and any(bundle.run is None for bundle in bundles):
            source = intake.default_source()
        images = intake.open_source(source, scratch).folder if source else None
        verdicts = []
        for bundle in bundles:
            verdicts.append(verify(bundle, images))
            _show(verdicts[-1], screen)
    if len(verdicts) > 1:
        rows = [
            (v.student_id, f"{v.correct / v.total:.2%}" if v.total else "", "FAILED" if v.faults else "holds")
            for v in verdicts
        ]
        screen.table(("student", "test accuracy", "verdict"), rows)
    return 1 if any(v.faults for v in verdicts) else 0


def verify_own(folder, student_id, screen):
    """Check the bundle that a run has just put in `folder`, say so, and return whether it holds."""
    paths = {kind: folder / name for kind, name in zip(KINDS, bundle_names(student_id))}
    verdict = verify(Files(student_id, str(folder), paths, folder / "run"), None)
    _show(verdict, screen)
    return not verdict.faults
