"""Runs that are cut off: the old bundle or the new one is there, and --resume ends as an uncut run does."""

import errno
import itertools
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import NEU_SIZES, ROOT, TINY_ARGS, TINY_SETTINGS, call, make_folder, refused
from test_run import names_in

import train
from lab import bundle, checkpoint, console, intake, options, training
from lab.errors import InputError
from lab.files import write_whole
from lab.findings import Findings
from lab.recipe import load_recipe, parse_setting
from lab.record import EpochRow, NamedRecipe
from study import findings

# Dropout, mixup, warm-up and Muon: all that has a state of its own.
SETTINGS = [*TINY_SETTINGS, "--set", "dropout=0.1", "--set", "mixup=0.4", "--set", "epochs=8"]
RECIPE = load_recipe("default", map(parse_setting, SETTINGS[1::2]))


def weights_of(path):
    return torch.load(path, weights_only=True)


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("resume") / "images", NEU_SIZES)


@pytest.fixture(scope="module")
def uncut(folder):
    """The weights and the history of a training that was never cut off."""
    return trained(folder, folder.parent / "uncut")


def trained(images, home, stop_after=None, path=None):
    """(weights, history) of a training, cut off after an epoch or resumed from the checkpoint at `path`."""
    home.mkdir(exist_ok=True)
    read = intake.read_images(intake.Source(images, "folder", "images"), RECIPE, home / "split")
    setup = training.prepare(read.train, read.test, RECIPE, torch.device("cpu"), "fp32")
    start = checkpoint.Start(NamedRecipe("default", RECIPE), Findings(), "fp32", None)
    saved = checkpoint.Checkpoint.load(path) if path else checkpoint.Checkpoint(None, start)
    saved.path = home / "checkpoint.pt"
    for epoch in training.epochs(setup, RECIPE, first=saved.restore(setup) + 1):
        scores = epoch.train_loss, epoch.train_accuracy, epoch.test_loss, epoch.correct
        saved.history.append(EpochRow(epoch.number, *epoch.rates, *scores, 0.0, 0.0))
        saved.save(setup, 1.0)
        if epoch.number == stop_after:
            break
    return setup.model.state_dict(), saved.history


@pytest.mark.parametrize("epoch", [1, 4, 7])
def test_a_resumed_training_ends_with_the_same_weights_bit_for_bit(folder, uncut, tmp_path, epoch):
    trained(folder, tmp_path / "first", stop_after=epoch)
    torch.manual_seed(99)  # another process's random numbers

    weights, history = trained(folder, tmp_path / "second", path=tmp_path / "first" / "checkpoint.pt")

    assert same(weights, uncut[0])
    assert history == uncut[1] and len(history) == 8


def test_a_checkpoint_holds_no_code_and_damage_is_one_line(folder, tmp_path):
    trained(folder, tmp_path / "first", stop_after=1)
    path = tmp_path / "first" / "checkpoint.pt"
    content = path.read_bytes()
    assert checkpoint.Checkpoint.load(path).start.recipe.values == RECIPE  # read with weights_only
    middle = len(content) // 2
    for other in (
        content[:-100],
        bytes(len(content)),  # of zeros, as a power cut may leave it
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    ):
        path.write_bytes(other)
        with pytest.raises(InputError, match=r"cannot go on from .*: run without --resume"):
            checkpoint.Checkpoint.load(path)


def command(folder, outputs, *more):
    args = ["--student-id", "9", "--output-dir", outputs, "--no-verify", "--device", "cpu", *more]
    return [sys.executable, ROOT / "run.py", *map(str, args)]


def test_a_killed_run_goes_on_and_ends_like_an_uncut_one(folder, tmp_path):
    """SIGKILL, SIGTERM and Ctrl-C in turn at random moments of one run; KILLS=20 for a long test."""
    times = int(os.environ.get("KILLS", "3"))
    epochs = 10 * times
    settings = [*SETTINGS, "--set", f"epochs={epochs}", "--recipe", "best", "--precision", "fp32"]
    start = command(folder, tmp_path / "a", "--data", folder, *settings)
    assert subprocess.run(start, capture_output=True).returncode == 0
    expected = weights_of(tmp_path / "a" / "9" / "9_Lab8_Homework.pth")

    outputs, dice = tmp_path / "b", random.Random(0)
    partial = outputs / ".9-partial" / "run" / bundle.CHECKPOINT
    call, kills, told = command(folder, outputs, "--data", folder, *settings), 0, ""
    for kind in itertools.islice(itertools.cycle((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)), times):
        process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        before = partial.stat().st_mtime_ns if partial.exists() else 0
        while process.poll() is None and not (partial.exists() and partial.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(dice.random() / 10)
        process.send_signal(kind)
        out, said = process.communicate(timeout=60)
        told += out
        if process.returncode == 0:  # it was faster
            break
        kills += 1
        assert not (outputs / "9").exists()
        if kind != signal.SIGKILL:
            assert process.returncode == 130
            assert f"--student-id 9 --resume --output-dir {outputs} --device cpu --no-verify goes on" in said
        call = command(folder, outputs, "--resume")
    print(f"killed {kills} times")
    assert kills
    if not (outputs / "9").exists():
        process = subprocess.run(call, capture_output=True, text=True)
        assert process.returncode == 0
        told += process.stdout
    # Each time it announced the run's own recipe and precision, not the defaults.
    assert told.count("goes on after epoch") == told.count(f"of {epochs}, recipe best, fp32") >= 1
    assert same(weights_of(outputs / "9" / "9_Lab8_Homework.pth"), expected)
    assert names_in(outputs) == ["9"]
    assert not (outputs / "9" / "run" / bundle.CHECKPOINT).exists()
    log = (outputs / "9" / "run" / "training.log").read_text()
    assert [f"Epoch: {i}" for i in range(1, epochs + 1)] == [
        x for x in log.splitlines() if x.startswith("Epoch")
    ]


def finished(folder, text):
    """A made-up bundle with a file of the student's beside it."""
    (folder / "run").mkdir(parents=True)
    for name in bundle.bundle_names("9"):
        (folder / name).write_text(text)
    (folder / "notes.txt").write_text("the student's own")
    (folder / "predictions").mkdir()  # of the old weights
    return folder


def texts_in(folder):
    return {(folder / name).read_text() for name in bundle.bundle_names("9")}


class Cut(BaseException):
    """The power goes."""


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("moment", range(12))
def test_whenever_publishing_is_cut_the_old_or_the_new_bundle_is_whole(tmp_path, monkeypatch, moment, swap):
    """Every call that changes the disk is cut off in turn; the next run finds one of the two."""
    folder = finished(tmp_path / "9", "old")
    if not swap:
        monkeypatch.setattr(bundle, "_exchange", lambda a, b: False)
    calls = iter(range(1000))

    def cutting(function):
        def called(*args, **kwargs):
            if next(calls) >= moment:
                raise Cut
            return function(*args, **kwargs)

        return called

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        with bundle.staged(folder) as staging:
            for name in bundle.bundle_names("9"):
                (staging.folder / name).write_text("new")
            staging.checkpoint.write_text("state")
            for owner, names in ((Path, ("rename", "unlink")), (shutil, ("rmtree",))):
                for name in names:
                    patch.setattr(owner, name, cutting(getattr(owner, name)))
            if swap:
                patch.setattr(bundle, "_exchange", cutting(bundle._exchange))
        raise Cut  # it was done before that moment

    # The next run starts, and fails before it has anything.
    with pytest.raises(InputError), bundle.staged(folder):
        raise InputError("no")
    assert texts_in(folder) in ({"old"}, {"new"})
    assert (folder / "notes.txt").read_text() == "the student's own"
    assert (folder / "predictions").exists() is (texts_in(folder) == {"old"})
    # What was trained and is not published yet is kept for --resume.
    assert names_in(tmp_path) in (["9"], [".9-partial", "9"])
    assert (tmp_path / ".9-partial").exists() is (tmp_path / ".9-partial/run" / bundle.CHECKPOINT).is_file()


def test_a_new_run_does_not_replace_an_interrupted_one_unasked(tmp_path, capsys):
    checkpoint = tmp_path / ".9-partial" / "run" / bundle.CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("state")
    args = ["--student-id", "9", "--data", "nowhere.zip", "--output-dir", str(tmp_path)]
    assert "9 has an interrupted run: add --resume to go on with it" in refused(capsys, *args)
    assert checkpoint.read_text() == "state"
    assert "interrupted" not in refused(capsys, *args, "--force")  # but that there is no such zip


def test_a_bundle_that_another_run_has_finished_meanwhile_is_not_replaced(
    folder, tmp_path, capsys, monkeypatch
):
    begin = findings.new_start

    def late(*args):  # the studies before a training take long
        finished(tmp_path / "9", "theirs")
        return begin(*args)

    monkeypatch.setattr(findings, "new_start", late)
    args = ["--student-id", "9", "--data", folder, "--output-dir", tmp_path, *TINY_ARGS, "--quiet"]
    assert "already holds" in refused(capsys, *args)
    assert texts_in(tmp_path / "9") == {"theirs"}


def test_the_hint_of_an_interrupted_run_names_what_it_needs_again():
    answers = f"--answers {ROOT}/templates/answers"
    args = shlex.split(f"--student-id 9 --output-dir 'my out' --device cpu {answers} --zip")
    again = options.parse_options([*args, "--set", "epochs=3"]).again
    assert again == f"--student-id 9 --resume --output-dir 'my out' --device cpu {answers} --zip"
    assert options.parse_options(shlex.split(again)).answers == ROOT / "templates/answers"
    assert options.parse_options(["--student-id", "9"]).again == "--student-id 9 --resume"


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("moment", range(10))
def test_whenever_drawing_again_is_cut_the_old_or_the_new_bundle_is_whole(
    tmp_path, monkeypatch, moment, swap
):
    """By SIGKILL, at every call that changes the disk; an interrupted run of that id stays as it is."""
    folder = finished(tmp_path / "9", "old")
    (folder / "run" / "record.json").touch()
    (folder / "run" / "dataset_split").mkdir()
    (folder / "run" / "dataset_split" / "a.png").write_text("image")
    interrupted = tmp_path / ".9-partial" / "run" / bundle.CHECKPOINT
    interrupted.parent.mkdir(parents=True)
    interrupted.write_text("state")
    if (child := os.fork()) == 0:
        calls = iter(range(1000))
        if not swap:
            bundle._exchange = lambda a, b: False

        def cutting(function):
            def called(*args, **kwargs):
                if next(calls) >= moment:
                    os._exit(9)
                return function(*args, **kwargs)

            return called

        for owner, names in (
            (Path, ("rename", "unlink")),
            (shutil, ("rmtree", "copytree")),
            (bundle, ("_exchange",)),
        ):
            for name in names:
                setattr(owner, name, cutting(getattr(owner, name)))
        with bundle.redrawn(folder) as copy:
            for name in bundle.bundle_names("9"):
                write_whole(copy / name, "new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with bundle.redrawn(folder) as copy:  # the next one starts, and finds it whole
        texts = texts_in(copy)
        assert (copy / "run" / "dataset_split" / "a.png").read_text() == "image"
    assert texts == texts_in(folder) == ({"new"} if code == 0 else texts)
    assert texts in ({"old"}, {"new"})
    assert (folder / "notes.txt").read_text() == "the student's own"
    assert interrupted.read_text() == "state"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".9-partial", ".9.lock", "9"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("no")])
def test_a_fault_in_the_report_costs_no_training_and_publishes_nothing(
    folder, tmp_path, monkeypatch, capsys, error
):
    """The bundle is whole or stays in its partial folder; --resume then draws the report alone."""
    import report

    def fail(*args):
        raise error

    args = ["--student-id", "9", "--output-dir", tmp_path, "--quiet", "--no-verify"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", fail)
        assert call(*args, "--data", folder, *TINY_ARGS[:-1]) == (130 if error is KeyboardInterrupt else 2)
    again = f"run.py: --student-id 9 --resume --output-dir {tmp_path} --no-verify goes on after its training"
    assert again in capsys.readouterr().err
    assert not (tmp_path / "9").exists()
    monkeypatch.setattr(train, "train_epoch", fail)  # nothing is trained again
    assert call(*args, "--resume") == 0
    assert names_in(tmp_path) == ["9"]
    assert {path.suffix for path in (tmp_path / "9").glob("9_*")} == {".pdf", ".py", ".pth"}


@pytest.mark.parametrize("stage", ["Data", "Evaluation", "Report", "publishing"])
def test_a_kill_at_any_stage_resumes_or_starts_anew_and_says_the_right_of_the_two(
    folder, tmp_path, capfd, uncut, stage
):
    args = ["--student-id", "9", "--output-dir", tmp_path, "--no-verify", "--device", "cpu"]
    start = ["--data", folder, *SETTINGS, "--precision", "fp32"]
    if (child := os.fork()) == 0:
        begin = console.Screen.stage

        def killed(screen, name):
            return os._exit(9) if name == stage else begin(screen, name)

        console.Screen.stage, bundle._publish = killed, lambda *paths: os._exit(9)
        call(*args, *start)
        os._exit(0)  # never: it was killed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    if stage == "Data":
        assert "there is no interrupted run of 9 to resume: run without" in refused(capfd, *args, "--resume")
        assert call(*args, *start) == 0
    else:
        assert call(*args, "--resume") == 0
    assert same(weights_of(tmp_path / "9" / "9_Lab8_Homework.pth"), uncut[0])
    assert names_in(tmp_path) == ["9"]


def test_a_bundle_is_on_the_disk_before_it_is_put_in_place(tmp_path, monkeypatch):
    done, rename = [], Path.rename
    monkeypatch.setattr(bundle, "to_disk", lambda path: done.append(path.name))
    monkeypatch.setattr(Path, "rename", lambda a, b: done.append("rename") or rename(a, b))
    with bundle.staged(tmp_path / "9") as staging:
        finished(staging.folder / "made", "new")
        for path in (staging.folder / "made").iterdir():
            path.replace(staging.folder / path.name) if path.is_file() else None
        (staging.run / "record.json").write_text("{}")
    published = done.index("rename")
    assert set(done[:published]) == {*bundle.bundle_names("9"), "record.json", ".9-partial"}
    assert tmp_path.name in done[published:]


def test_a_second_run_of_the_same_id_is_refused_while_the_first_works(folder, tmp_path, capsys):
    new, ok = ["--data", folder, *TINY_ARGS], ["--output-dir", tmp_path, "--quiet", "--student-id"]
    with bundle.staged(finished(tmp_path / "9", "old")) as staging:
        for args in ([*new, "--force"], ["--resume", "--force"], ["--report-only"]):
            assert "another run is writing" in refused(capsys, *args, *ok, "9")
        assert staging.run.is_dir()
        assert call(*new, "--set", "epochs=1", *ok, "10") == 0


def test_a_second_run_that_starts_during_the_publishing_leaves_the_bundle(
    folder, tmp_path, monkeypatch, capsys
):
    """The lock lies beside the folder: one inside would have moved away with the old bundle."""
    args = ["--student-id", "9", "--data", folder, "--output-dir", tmp_path, *TINY_ARGS, "--force", "--quiet"]
    done, remove = [], bundle._remove_old

    def meanwhile(*old):
        if not done and (tmp_path / "9").exists():  # the new one has just been put in place
            done.append(refused(capsys, *args))
        remove(*old)

    with bundle.staged(finished(tmp_path / "9", "old")) as staging:
        for name in bundle.bundle_names("9"):
            (staging.folder / name).write_text("new")
        monkeypatch.setattr(bundle, "_remove_old", meanwhile)
    assert "another run is writing" in done[0]
    assert texts_in(tmp_path / "9") == {"new"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [".9.lock", "9"]


def full_disk(monkeypatch):
    write = checkpoint.write_whole

    def full(path, content):
        if path.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_whole", full)


def full_memory(monkeypatch):
    evaluate = train.evaluate

    def full(model, loader, history, *args, **how):
        if len(history) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return evaluate(model, loader, history, *args, **how)

    monkeypatch.setattr(train, "evaluate", full)


@pytest.mark.parametrize(
    ("fill", "message"),
    [(full_disk, "No space left on device: make room"), (full_memory, "the memory became too small: close")],
)
def test_what_becomes_full_is_said_and_costs_no_finished_epoch(
    folder, tmp_path, monkeypatch, capsys, fill, message
):
    args = ["--student-id", "9", "--output-dir", tmp_path, "--quiet"]
    fill(monkeypatch)
    assert call(*args, "--data", folder, *TINY_ARGS) == 2
    resume, said = capsys.readouterr().err.splitlines()
    again = f"run.py: --student-id 9 --resume --output-dir {tmp_path} --no-verify"
    assert resume == f"{again} goes on from the last epoch"
    assert said.startswith(f"run.py: {message}")
    monkeypatch.undo()
    assert call(*args, "--resume", "--no-verify") == 0
    assert len((tmp_path / "9" / "run" / "history.csv").read_text().splitlines()) == 7


def test_resume_without_an_interrupted_run_is_refused(tmp_path, capsys):
    said = refused(capsys, "--student-id", "9", "--resume", "--output-dir", tmp_path / "o", "--quiet")
    assert "there is no interrupted run of 9 to resume" in said
    assert names_in(tmp_path / "o") == []


def test_a_finished_run_is_not_resumed_nor_is_it_offered_to_replace_it(bundle, capsys):
    said = refused(capsys, *bundle.args, "--resume")
    assert "is finished: no interrupted run of 0812345 is left to resume" in said
    assert "--force" not in said


def test_images_that_changed_meanwhile_are_refused_and_the_checkpoint_stays(folder, tmp_path, capsys):
    images = shutil.copytree(folder, tmp_path / "images")
    partial = tmp_path / "o" / ".9-partial" / "run" / bundle.CHECKPOINT
    process = subprocess.Popen(
        command(images, tmp_path / "o", "--data", images, *SETTINGS, "--set", "epochs=999")
    )
    while not partial.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    next(images.rglob("*.png")).unlink()
    assert call("--student-id", "9", "--resume", "--output-dir", tmp_path / "o", "--quiet") == 2
    assert "are others now: run without --resume" in capsys.readouterr().err
    assert partial.exists()
