import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# A tiny model gains nothing by a second thread, and threads that wait for each other on a busy machine cost
# half of all time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import run
from lab.record import read_record
from report import rehearsal

ROOT = Path(__file__).parent.parent
NEU_SIZES = {"crazing": 10, "inclusion": 10, "patches": 10}

# A model that trains in a second, for tests of everything around it.
TINY = ["image_size=32", "patch_size=8", "dim=32", "depth=2", "heads=2", "dim_head=16", "mlp_dim=64"]
TINY += ["epochs=6", "batch_size=8", "warmup_epochs=1", "learning_rate=2e-3"]
# Not fitted to the images, which takes a second more.
TINY += ["repeats=1", 'pool="mean"', "standardize=true", "flip=true", "vertical_flip=true"]
TINY += ["transpose=false", "crop=0.06", "mixup=0.4"]
TINY_SETTINGS = [part for setting in TINY for part in ("--set", setting)]
TINY_ARGS = [*TINY_SETTINGS, "--no-verify"]  # that takes longer than such a run; test_verification.py


def striped(kind, seed, size=40):
    """A noisy grey image: rows (kind 0), columns (1), or squares (2)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] // 5 % 2
    pattern = (y, x, y ^ x)[kind % 3]
    noise = rng.normal(0, 20, (size, size))
    return Image.fromarray((90 + 60 * pattern + noise).clip(0, 255).astype(np.uint8))


def make_folder(folder, sizes, suffix=".png"):
    """A class folder of striped images for each name in `sizes`."""
    for kind, (name, count) in enumerate(sizes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(1, count + 1):
            striped(kind, 1000 * kind + i).save(folder / name / f"{name}_{i}{suffix}")
    return folder


def zip_folder(folder, path):
    files = sorted(folder.rglob("*"))  # before the zip is there: it may lie in the folder
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    return path


@pytest.fixture(autouse=True)
def answers_in_this_process(monkeypatch):
    """Answers are filled in here: a process with limits for each costs seconds (test_answers.py has them)."""
    monkeypatch.setattr(rehearsal, "apart", lambda context, work, *args, **limits: work(*args))


@pytest.fixture
def images(tmp_path):
    """Three classes of ten images each, in folders."""
    return make_folder(tmp_path / "images", NEU_SIZES)


@pytest.fixture
def one_thread(monkeypatch):
    """Threads on models so small only wait for each other, and long where another process has a core."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that the test starts
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def neu_zip():
    """The real data set, where NEU_CLS_ZIP names it."""
    path = os.environ.get("NEU_CLS_ZIP")
    if not path:
        pytest.skip("NEU_CLS_ZIP is not set")
    return Path(path)


def run_program(*args, cwd, **environment):
    """A program in a process of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd, env=os.environ | environment, capture_output=True, timeout=300,
        encoding=environment.get("PYTHONIOENCODING"), text=True,
    )  # fmt: skip


def call(*args):
    """The exit code of run.py with these arguments, in this process."""
    return run.main([str(arg) for arg in args])


def changed(args, extra):
    """A command line with other flags, each with one value, in place of those that it has of them."""
    for flag in extra:
        if flag.startswith("--") and flag in args and flag != "--set":
            at = args.index(flag)
            args = args[:at] + args[at + 2 :]
    return [*args, *extra]


def refused(capsys, *args):
    """The one line that a refused call prints; exit code 2."""
    assert call(*args) == 2
    said = capsys.readouterr().err
    assert said.startswith("run.py: ")
    assert said.count("\n") == 1
    return said


class Bundle:
    def __init__(self, home, student_id="0812345"):
        self.home = home
        self.folder = home / "outputs" / student_id
        self.run = self.folder / "run"
        self.pdf, self.code, self.weights = (
            self.folder / f"{student_id}_Lab8_Homework.{kind}" for kind in ("pdf", "py", "pth")
        )
        self.args = ["--student-id", student_id, "--output-dir", self.folder.parent]  # of a call for it

    @property
    def record(self):
        return read_record(self.run / "record.json")

    def copy_to(self, home):
        """A copy of this bundle, to change."""
        shutil.copytree(self.folder, home / "outputs" / self.folder.name)
        return Bundle(home, self.folder.name)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A finished bundle of a tiny run on a zip, with the process that made it."""
    home = tmp_path_factory.mktemp("home folder ä")  # a space and an umlaut, as users have
    zip_folder(make_folder(home / "images", NEU_SIZES), home / "dataset.zip")
    args = ["--student-id", "0812345", "--name", "Lin Mei <b>", *TINY_SETTINGS]
    process = run_program(ROOT / "run.py", *args, cwd=home)
    assert process.returncode == 0, process.stderr
    made = Bundle(home)
    made.process = process
    return made


def drawn(record, bundle, folder=None):
    """The report of a record as HTML, without its figures, which take most of the time: only their names."""
    from report import answers, render

    names = "counts curves confusion calibration rollout distance heads positions filters diary shares"
    drawings = {name: f"figures/{name}.pdf" for name in names.split()}
    page = render.fill_page(record, bundle.run, answers.answer_texts(record, folder), drawings)
    return render.number(page, render.QUESTION_NAMES)


@pytest.fixture
def copy(bundle, tmp_path):
    """A copy of the finished bundle, to change."""
    return bundle.copy_to(tmp_path)
