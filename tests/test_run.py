"""The whole command, as a user runs it."""

import ast
import csv
import hashlib
import importlib.util
import json
import math
import re
import time

import pytest
import torch
from conftest import NEU_SIZES, ROOT, TINY_ARGS, call, make_folder, refused, run_program

import run
import study.__main__
import train
import verify.__main__
from lab import options, stages, synthetic
from lab.checkpoint import Checkpoint
from lab.console import Screen
from lab.record import EpochRow, as_json, read_record
from vit import ViT

RUN = ROOT / "run.py"


def names_in(folder):
    """The names in a folder, without the lock files, which stay."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_a_bundle_has_the_three_files_and_the_run_folder(bundle):
    assert names_in(bundle.folder) == [
        "0812345_Lab8_Homework.pdf",
        "0812345_Lab8_Homework.pth",
        "0812345_Lab8_Homework.py",
        "run",
    ]
    tables = ["confusion_matrix.csv", "history.csv", "predictions.csv", "record.json", "training.log"]
    pictures = ["dataset", "dataset_split", "examples", "mistakes", "test_samples", "train_samples"]
    assert names_in(bundle.run) == sorted([*tables, *pictures, "inspection.npz", "report.html"])
    assert names_in(bundle.folder.parent) == ["0812345"]  # nothing left lying about


def test_the_console_names_stages_paths_and_result(bundle):
    said = bundle.process.stdout
    for stage in ("Check", "Data", "Model", "Training", "Evaluation", "Report", "Verification"):
        assert re.search(rf"[1-7]/7  {stage}", said)
    assert re.search(r"0812345  holds: \d+ of 9 right", said)
    for path in (bundle.pdf, bundle.code, bundle.weights):
        assert str(path.relative_to(bundle.home)) in said.splitlines()
    assert f"Test accuracy {bundle.record.results.accuracy:.2%}" in said
    assert bundle.process.stderr == ""


def test_weights_open_safely_and_fit_the_recorded_model(bundle):
    weights = torch.load(bundle.weights, weights_only=True)
    model = ViT(
        image_size=32, patch_size=8, num_classes=3, dim=32, depth=2, heads=2, dim_head=16,
        mlp_dim=64, pool="mean",
    )  # fmt: skip
    model.load_state_dict(weights, strict=True)
    assert sum(p.numel() for p in model.parameters()) == bundle.record.model.parameters


def test_tables_hold_what_the_record_holds(bundle):
    def table(name):
        return list(csv.DictReader((bundle.run / name).read_text().splitlines()))

    results, rows = bundle.record.results, table("predictions.csv")
    assert len(rows) == 9
    right = sum(row["true"] == row["predicted"] for row in rows)
    assert right == results.correct
    assert min(float(row[f"confidence {row['predicted']}"]) for row in rows) > 1 / 3
    history = table("history.csv")
    assert [int(row["epoch"]) for row in history] == [1, 2, 3, 4, 5, 6]
    assert float(history[-1]["test_accuracy"]) == results.accuracy
    matrix = table("confusion_matrix.csv")
    assert [row["true \\ predicted"] for row in matrix] == sorted(NEU_SIZES)
    assert sum(int(row[row["true \\ predicted"]]) for row in matrix) == right
    log = (bundle.run / "training.log").read_text()
    assert log.count("Epoch: ") == 6
    assert f"Accuracy: {right}/9" in log.splitlines()[-2]


def test_another_program_can_follow_the_training(bundle, tmp_path, monkeypatch, capsys):
    """Tables and TensorBoard's events grow with each epoch; in the end they hold what the record holds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen, save = [], Checkpoint.save

    def look(checkpoint, setup, seconds):
        run_folder = checkpoint.path.parent
        events = EventAccumulator(str(run_folder / "tensorboard")).Reload()
        rows = (run_folder / "history.csv").read_text().splitlines()
        log = (run_folder / "training.log").read_text()
        seen.append((len(rows) - 1, log.count("Epoch: "), len(events.Scalars("test_accuracy"))))
        save(checkpoint, setup, seconds)

    monkeypatch.setattr(Checkpoint, "save", look)
    args = ["--student-id", "f", "--output-dir", tmp_path, "--data", bundle.home / "dataset.zip", *TINY_ARGS]
    assert call(*args, "--set", "epochs=3", "--tensorboard") == 0
    assert seen == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    assert (
        f"follow it in {tmp_path / '.f-partial' / 'run'}: training.log, history.csv"
        in capsys.readouterr().out
    )
    history = read_record(tmp_path / "f" / "run" / "record.json").training.history
    events = EventAccumulator(str(tmp_path / "f" / "run" / "tensorboard")).Reload().Scalars("test_loss")
    assert [event.value for event in events] == pytest.approx([row.test_loss for row in history], rel=1e-6)


def test_tensorboard_is_named_where_it_is_missing(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    args = [
        "--student-id",
        "f",
        "--output-dir",
        tmp_path,
        "--data",
        bundle.home / "dataset.zip",
        "--tensorboard",
    ]
    assert "pip install tensorboard" in refused(capsys, *args)


def test_a_finished_bundle_is_only_replaced_by_force(bundle, copy, capsys):
    outputs = copy.folder.parent
    (copy.folder / "my notes.txt").write_text("keep me")
    old = copy.folder / "0812345_Lab8_Homework.onnx"
    old.write_bytes(b"of the old weights")
    before = {p: p.read_bytes() for p in outputs.rglob("*") if p.is_file()}
    args = [*copy.args, "--data", bundle.home / "dataset.zip", *TINY_ARGS, "--set", "epochs=1", "--quiet"]
    assert "--force" in refused(capsys, *args)
    assert {p: p.read_bytes() for p in outputs.rglob("*") if p.is_file()} == before

    assert call(*args, "--force") == 0
    assert (copy.folder / "my notes.txt").read_text() == "keep me"
    assert not old.exists()
    assert len((copy.run / "history.csv").read_text().splitlines()) == 2
    assert names_in(outputs) == ["0812345"]
    files = [str(path) for path in (copy.pdf, copy.code, copy.weights)]
    assert capsys.readouterr().out.splitlines() == files


def test_report_only_draws_the_pdf_again_without_training(bundle, copy, capsys):
    copy.pdf.unlink()
    process = run_program("-X", "importtime", RUN, *copy.args, "--report-only", cwd=copy.home)
    assert process.returncode == 0, process.stderr
    assert "is not the file" not in process.stdout
    # The report reads the record: torch would take seconds to import.
    assert not re.search(r"\| +torch$", process.stderr, re.MULTILINE)
    assert copy.pdf.read_bytes().startswith(b"%PDF")
    record = copy.record
    assert record.files[copy.pdf.name] == hashlib.sha256(copy.pdf.read_bytes()).hexdigest()
    assert copy.weights.read_bytes() == bundle.weights.read_bytes()
    content = json.loads(as_json(record))
    for other in ({"recipe": {"name": "old", "values": {"epochs": 3}}}, {"schema": 99}):
        (copy.run / "record.json").write_text(json.dumps(content | other))
        assert "another version" in refused(capsys, *copy.args, "--report-only")
    (copy.run / "record.json").write_text(json.dumps(content))
    (copy.run / "training.log").unlink()
    assert "training.log" in refused(capsys, *copy.args, "--report-only")


def test_report_only_says_where_the_weights_or_the_code_are_no_longer_the_run_s(copy, capsys):
    copy.weights.write_bytes(copy.weights.read_bytes() + b"of another run")
    copy.code.unlink()
    assert call(*copy.args, "--report-only") == 0
    said = capsys.readouterr().out
    for path in (copy.weights, copy.code):
        assert f"{path.name} is not the file that the run wrote" in said


def test_the_report_imports_nothing_that_computes():
    code = "import sys, report, report.figures; assert not {'torch', 'data', 'train'} & set(sys.modules)"
    assert run_program("-c", code, cwd=ROOT).returncode == 0


def test_who_imports_whom_is_as_docs_structure_says():
    """Lazy imports too: study may import lab, lab none of what uses it, and inside lab none climbs."""
    _, layers = re.findall(r"```\n(.*?)```", (ROOT / "docs" / "structure.md").read_text(), re.DOTALL)
    level = {name: number for number, line in enumerate(layers.splitlines()) for name in line.split()}
    assert set(level) == {path.stem for path in (ROOT / "lab").glob("[!_]*.py")}
    above = {"lab": {"study", "verify", "report"}, "study": {"verify", "report"}}
    above |= {"report": {"study", "verify", "train", "data", "vit"}, "verify": {"study"}}
    for folder, forbidden in above.items():
        for path in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)]
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{name}" for name in names]
                for package, _, rest in (name.partition(".") for name in names):
                    assert package not in forbidden | {"run"}, f"{path} imports {package}"
                    if folder == package == "lab" and path.stem in level:
                        below = level[rest.split(".")[0]]
                        assert below < level[path.stem], f"{path} imports {rest}"


@pytest.mark.parametrize(("epochs", "lines"), [(6, 6), (16, 8), (25, 9), (100, 10)])
def test_where_nothing_is_redrawn_about_ten_epochs_are_told_the_last_among_them(epochs, lines, capsys):
    with Screen(False, 0).training(epochs, 1) as (_, show):
        for epoch in range(1, epochs + 1):
            show(EpochRow(epoch, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0))
    said = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert len(said) == lines and said[-1] == f"{epochs}/{epochs}"


def test_a_long_training_is_announced_before_it_starts(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "LONG", 0)
    args = ["--student-id", "s3", "--data", bundle.home / "dataset.zip", *TINY_ARGS, "--set", "epochs=1"]
    assert call(*args, "--output-dir", tmp_path) == 0
    said = capsys.readouterr().out
    assert "1 epochs, about" in said
    assert said.index("long: Ctrl-C stops") < said.index("5/6")


def test_help_has_groups_and_is_there_at_once():
    seconds = []
    for module in (["run.py"], ["-X", "importtime", "run.py"]):
        start = time.perf_counter()
        process = run_program(*module, "--help", cwd=ROOT)
        seconds.append(time.perf_counter() - start)
        assert process.returncode == 0
        # At the start of lines, in this order.
        groups = ["what to train on", "how to train", "what to write", "afterwards", "examples"]
        assert re.findall(rf"^({'|'.join(groups)}):$", process.stdout, re.MULTILINE) == groups
        for word in ("--student-id", "--data", "--set", "learning_rate", "demo"):
            assert word in process.stdout
    assert min(seconds) < 2
    assert not re.search(r"\| +(torch|numpy|weasyprint|matplotlib)$", process.stderr, re.MULTILINE)


# Words with two dashes that are not flags of run.py: of programs that are started, and of CSS.
OTHERS = {
    "lab/distributed.py": {"--nproc-per-node"},  # torchrun
    "report/fonts.py": {"--text", "--mono"},
    "report/latex.py": {"--sandbox", "--wrap", "--columns", "--template"},
    "verify/__main__.py": {"--jobs", "--diff", "--report-csv"},
    "verify/verification.py": {"--diff", "--report-csv"},
}


def test_no_message_names_a_flag_that_run_py_lacks():
    flags = {flag for action in options.make_parser()._actions for flag in action.option_strings}
    files = [RUN, *(file for part in ("lab", "report", "verify") for file in (ROOT / part).glob("*.py"))]
    named = {}
    for file in files:
        texts = [n.value for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Constant)]
        words = re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(t for t in texts if isinstance(t, str)))
        named[file.relative_to(ROOT).as_posix()] = set(words)
    assert {"--resume", "--set", "--limit", "--force"} <= set().union(*named.values())
    assert {file: words - flags for file, words in named.items() if words - flags} == OTHERS


TRAINING = [
    ("--data", "x.zip"),
    ("--limit", "images=5"),
    ("--recipe", "default"),  # also a value that is the default
    ("--set", "epochs=3"),
    ("--seed", "1"),
    ("--precision", "auto"),
    ("--study",),
]


@pytest.mark.parametrize("job", ["--resume", "--report-only"])
def test_flags_that_would_be_ignored_are_refused_by_name(tmp_path, capsys, job):
    more = [("--device", "cpu"), ("--resume",), ("--force",)] if job == "--report-only" else []
    ok = ["--student-id", "1", "--output-dir", tmp_path / "o", job]
    for flag, *value in [*TRAINING, *more]:
        assert f"leave {flag} out" in refused(capsys, *ok, flag, *value)
    assert "leave --data, --precision and --set out" in refused(
        capsys, *ok, *("--precision", "bf16", "--set", "dim=8", "--data", "demo")
    )
    assert not (tmp_path / "o").exists()


def test_flags_that_go_together_with_others_only(tmp_path, capsys):
    ok = ["--student-id", "1", "--output-dir", tmp_path / "o"]
    assert "--report-only makes no study" in refused(capsys, *ok, "--report-only", "--diary")
    assert "--budget goes with --study" in refused(capsys, *ok, "--budget", "10m")
    assert "leave --force and --latex out" in refused(capsys, "--verify", tmp_path, "--force", "--latex")


@pytest.mark.parametrize("flag", ["--data", "--labels", "--recipe", "--answers", "--diary"])
def test_of_a_flag_given_twice_neither_value_is_dropped(capsys, flag):
    with pytest.raises(SystemExit, match="2"):
        call("--student-id", "1", flag, "a", flag, "b")
    assert f"run.py: error: {flag} is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(("main", "what"), [(verify.__main__.main, "x"), (study.__main__.main, "trials")])
def test_nor_in_the_other_commands(capsys, main, what):
    with pytest.raises(SystemExit, match="2"):
        main([what, "--data", "a", "--data", "b"])
    assert "--data is given twice" in capsys.readouterr().err


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
        "cannot read text.zip as a zip": [*ok, "--data", "text.zip"],
        "no images": [*ok, "--data", "empty"],
        "no two classes": [*ok, "--data", "one"],
        "no recipe is called": [*ok, "--recipe", "nope"],
        "did you mean epochs": [*ok, "--set", "epoch=1"],
        "seed must be from 0": [*ok, "--seed=-1"],
        "there is no such folder": [*ok, "--answers", "nowhere"],
        "no answers in it": [*ok, "--answers", "answers"],
        "there is no outputs": [*ok, "--report-only"],
        "cannot write to file": [*ok, "--data", "one", "--output-dir", "file"],
        "write it as images=N, image_mb=N, total_gb=N": [*ok, "--data", "demo", "--limit", "images"],
        "has control characters": [*ok, "--data", "demo", "--name", "Lin\x1b[2J"],
    }
    if not torch.cuda.is_available():
        cases["--device cuda"] = [*ok, "--device", "cuda"]
    for message, args in cases.items():
        assert message in refused(capsys, *args, "--quiet")
    outputs = tmp_path / "outputs"
    assert not outputs.exists() or names_in(outputs) == []


def test_to_draw_a_report_that_is_not_there_makes_no_folder(tmp_path, capsys):
    args = ["--student-id", "s1", "--output-dir", tmp_path / "mistyped", "--report-only"]
    assert "run once without --report-only" in refused(capsys, *args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flag", ["--data", "--labels", "--group", "--answers", "--output-dir", "--verify", "--predict"]
)
def test_an_empty_value_is_refused(capsys, flag, monkeypatch, tmp_path):
    """As of a shell's variable that is not set: it would be the working folder, or nothing at all."""
    monkeypatch.chdir(tmp_path)
    for args in ((flag, ""), (f"{flag}=",)):
        assert f"the value of {flag} is empty" in refused(capsys, "--student-id", "1", *args)
    assert list(tmp_path.iterdir()) == []


def test_an_excluded_folder_may_be_written_as_a_shell_completes_it():
    args = ["--check", "--exclude", "old/", "--exclude", "./new/x", "--include=./masks//"]
    choices = options.parse_options(args).choices
    assert choices.exclude == ("old", "new/x") and choices.include == ("masks",)


@pytest.mark.parametrize("name", ["run", "latex", "predictions"])
def test_a_folder_of_the_user_s_that_a_run_would_replace_stops_it(tmp_path, images, capsys, name):
    mine = tmp_path / "o" / "s1" / name
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("mine")
    args = ["--student-id", "s1", "--output-dir", tmp_path / "o", "--data", images, *TINY_ARGS]
    for more in ((), ("--force",)):
        assert f"{name} is not of this program, which would replace it" in refused(
            capsys, *args, *more, "--quiet"
        )
    assert (mine / "thesis.tex").read_text() == "mine"


def test_an_output_folder_that_is_a_link_is_refused_before_the_work(tmp_path, images, capsys):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "s1").symlink_to(tmp_path / "elsewhere")
    args = ["--student-id", "s1", "--output-dir", tmp_path / "o", "--data", images, *TINY_ARGS, "--quiet"]
    assert "is a link: remove it" in refused(capsys, *args)
    assert (tmp_path / "o" / "s1").is_symlink()


@pytest.mark.parametrize("text", ["images=-1", "size=3", "image_mb=x"])
def test_limits_are_checked(capsys, tmp_path, text):
    args = ["--student-id", "1", "--data", "demo", "--output-dir", tmp_path / "o", "--limit", text]
    assert "write it as images=N, image_mb=N, total_gb=N" in refused(capsys, *args)


def test_a_run_that_diverges_keeps_the_old_bundle(bundle, copy, capsys, monkeypatch):
    def poisoned(*args):
        model = make_model(*args)
        torch.nn.init.constant_(model.cls_token, math.nan)
        return model

    make_model = train.make_model
    monkeypatch.setattr(train, "make_model", poisoned)
    args = [*copy.args, "--data", bundle.home / "dataset.zip", *TINY_ARGS, "--force", "--quiet"]
    assert "the training loss became nan" in refused(capsys, *args)
    assert copy.pdf.read_bytes() == bundle.pdf.read_bytes()
    assert names_in(copy.folder.parent) == ["0812345"]


def test_the_demonstration_run_says_what_it_is(tmp_path, monkeypatch):
    from pypdf import PdfReader

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "DEFAULT_PER_CLASS", 10)
    assert run.main(["--student-id", "demo", *TINY_ARGS, "--quiet"]) == 0
    pages = [p.extract_text() for p in PdfReader("outputs/demo/demo_Lab8_Homework.pdf").pages]
    assert "Made from demonstration images" in pages[0]
    assert sum(page.count("demonstration images") for page in pages) >= 8
    record = json.loads((tmp_path / "outputs/demo/run/record.json").read_text())
    assert record["data"]["demonstration"] is True
