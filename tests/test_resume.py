"""Runs that are cut off: the old bundle or the new one is there, and --resume ends as an uncut run does."""

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import NEU_SIZES, ROOT, TINY_ARGS, TINY_SETTINGS, make_folder

import bundle
import checkpoint
import data
import run
import train
from recipe import InputError, load_recipe

# Dropout, mixup, warm-up and Muon: all that has a state of its own.
SETTINGS = [*TINY_SETTINGS, "--set", "dropout=0.1", "--set", "mixup=0.4", "--set", "epochs=8"]
RECIPE = load_recipe("default", map(run.parse_setting, SETTINGS[1::2]))


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
    read = data.load_data(images, home / "split", RECIPE)
    cpu = torch.device("cpu")
    loaders = data.make_loaders(read, RECIPE, cpu)
    model = train.make_model(RECIPE, len(read.classes))
    file = home / "checkpoint.pt"
    saved = checkpoint.Checkpoint.load(path) if path else checkpoint.Checkpoint(file, {})
    saved.path = file
    for row in train.fit(model, *loaders, RECIPE, precision="fp32", log=lambda line: None, begin=saved.begin):
        saved.save(row, 1.0)
        if row["epoch"] == stop_after:
            break
    return model.state_dict(), saved.history


@pytest.mark.parametrize("epoch", [1, 4, 7])
def test_a_resumed_training_ends_with_the_same_weights_bit_for_bit(folder, uncut, tmp_path, epoch):
    trained(folder, tmp_path / "first", stop_after=epoch)
    torch.manual_seed(99)  # another process's random numbers

    weights, history = trained(folder, tmp_path / "second", path=tmp_path / "first" / "checkpoint.pt")

    assert same(weights, uncut[0])
    timing = ("train_seconds", "seconds")
    assert [{k: v for k, v in row.items() if k not in timing} for row in history] == [
        {k: v for k, v in row.items() if k not in timing} for row in uncut[1]
    ]


def test_a_checkpoint_holds_no_code(folder, tmp_path):
    trained(folder, tmp_path / "first", stop_after=1)
    path = tmp_path / "first" / "checkpoint.pt"
    assert torch.load(path, weights_only=True)["version"] == checkpoint.VERSION
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"is damaged .*: run without --resume"):
        checkpoint.Checkpoint.load(path)


def command(folder, outputs, *more):
    args = ["--student-id", "9", "--output-dir", outputs, "--no-verify", "--device", "cpu", *more]
    return [sys.executable, ROOT / "run.py", *map(str, args)]


def test_a_killed_run_goes_on_and_ends_like_an_uncut_one(folder, tmp_path):
    """SIGKILL, SIGTERM and Ctrl-C in turn at random moments of one run; KILLS=20 for a long test."""
    times = int(os.environ.get("KILLS", "3"))
    epochs = 10 * times
    settings = [*SETTINGS, "--set", f"epochs={epochs}"]
    start = command(folder, tmp_path / "a", "--data", folder, *settings)
    assert subprocess.run(start, capture_output=True).returncode == 0
    expected = weights_of(tmp_path / "a" / "9" / "9_Lab8_Homework.pth")

    outputs, dice = tmp_path / "b", random.Random(0)
    partial = outputs / ".9-partial" / "run" / bundle.CHECKPOINT
    call, kills = command(folder, outputs, "--data", folder, *settings), 0
    for kind in itertools.islice(itertools.cycle((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)), times):
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        before = partial.stat().st_mtime_ns if partial.exists() else 0
        while process.poll() is None and not (partial.exists() and partial.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(dice.random() / 10)
        process.send_signal(kind)
        said = process.communicate(timeout=60)[1]
        if process.returncode == 0:  # it was faster
            break
        kills += 1
        assert not (outputs / "9").exists()
        if kind != signal.SIGKILL:
            assert process.returncode == 130
            assert "--student-id 9 --resume goes on" in said
        call = command(folder, outputs, "--resume")
    print(f"killed {kills} times")
    assert kills
    if not (outputs / "9").exists():
        assert subprocess.run(call, capture_output=True).returncode == 0
    assert same(weights_of(outputs / "9" / "9_Lab8_Homework.pth"), expected)
    assert [p.name for p in outputs.iterdir()] == ["9"]
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
    return folder


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
        with bundle.staged(folder, "9") as staging:
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
    with pytest.raises(InputError), bundle.staged(folder, "9"):
        raise InputError("no")
    texts = {(folder / name).read_text() for name in bundle.bundle_names("9")}
    assert texts in ({"old"}, {"new"})
    assert (folder / "notes.txt").read_text() == "the student's own"
    assert [p.name for p in tmp_path.iterdir()] == ["9"]


def test_a_second_run_of_the_same_id_is_refused_while_the_first_works(folder, tmp_path, capsys):
    with bundle.staged(tmp_path / "9", "9") as staging:
        args = ["--student-id", "9", "--data", str(folder), "--output-dir", str(tmp_path), *TINY_ARGS]
        assert run.main([*args, "--quiet"]) == 2
        said = capsys.readouterr().err
        assert "another run is writing" in said and said.count("\n") == 1
        assert staging.run.is_dir()
        assert run.main([*args, "--quiet", "--student-id", "10"]) == 0


def test_a_full_disk_is_said_and_costs_no_finished_epoch(folder, tmp_path, monkeypatch, capsys):
    write, args = checkpoint.write_whole, ["--student-id", "9", "--output-dir", str(tmp_path), "--quiet"]

    def full(path, content):
        if path.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_whole", full)
    assert run.main([*args, "--data", str(folder), *TINY_ARGS]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("--resume goes on from the last epoch")
    assert said[1].startswith("run.py: No space left on device: make room in")
    monkeypatch.undo()
    assert run.main([*args, "--resume", "--no-verify"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "there is no interrupted run of 9 to resume"),
        (["--set", "epochs=3"], "leave --data, --recipe, --set, --seed and studies out"),
    ],
)
def test_resume_is_refused_where_it_makes_no_sense(tmp_path, capsys, more, message):
    assert run.main(["--student-id", "9", "--resume", "--output-dir", str(tmp_path / "o"), *more]) == 2
    assert message in capsys.readouterr().err
    shutil.rmtree(tmp_path / "o", ignore_errors=True)


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
    assert run.main(["--student-id", "9", "--resume", "--output-dir", str(tmp_path / "o"), "--quiet"]) == 2
    assert "are others now: run without --resume" in capsys.readouterr().err
    assert partial.exists()
