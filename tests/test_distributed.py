"""One training on several processes, as torchrun starts them: on the CPU, with gloo."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY_ARGS, make_folder, run_program
from pypdf import PdfReader

from lab.record import read_record

# Every gradient and logit of a shared model beside those of the model alone, in each process.
GRADIENTS = """
import sys
import torch
import torch.nn.functional as F
import train
from lab import distributed
from lab.recipe import Recipe

recipe = Recipe(image_size=32, patch_size=8, dim=32, depth=2, heads=2, dim_head=16, mlp_dim=64)
distributed._begin()
alone, copy = (train.make_model(recipe, 3) for _ in "ab")
shared = distributed.Shared(copy)
for size in (8, 7, 3, 2, 1):  # a share of one image may be none
    images, labels = torch.randn(size, 1, 32, 32), torch.randint(0, 3, (size,))
    outputs = alone(images), shared(images)
    torch.testing.assert_close(outputs[1], outputs[0])
    for output in outputs:
        F.cross_entropy(output, labels, label_smoothing=0.1).backward()
    for one, other in zip(alone.parameters(), copy.parameters()):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4)
    assert any(p.grad.abs().max() > 1e-3 for p in copy.parameters())
    alone.zero_grad(), shared.zero_grad()
    with torch.no_grad():
        torch.testing.assert_close(shared.eval()(images), alone.eval()(images))
    shared.train()
print("same", flush=True)
distributed.dist.barrier()
distributed.os._exit(0)
"""


def torchrun(count):
    """What starts a program in so many processes, for run_program."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]


def asked(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    # 62 training images in batches of 8: the shares of three processes are 3, 3 and 2; of the last batch 2.
    return make_folder(tmp_path_factory.mktemp("distributed") / "images", {"a": 33, "b": 30, "c": 27})


ARGS = ["--precision", "fp32", *TINY_ARGS]


@pytest.mark.parametrize("count", [2, 3])
def test_the_sum_of_all_shares_is_the_gradient_of_one_process(tmp_path, count):
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    done = run_program(*torchrun(count), "gradients.py", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout.count("same")) == (0, count), done.stderr


def test_three_processes_make_the_bundle_of_one(tmp_path, images):
    records = []
    for student, start in (("one", []), ("three", torchrun(3))):
        args = ["--student-id", student, "--data", images, *ARGS]
        done = run_program(*start, ROOT / "run.py", *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Test accuracy") == 1  # one of them speaks
        records.append(read_record(tmp_path / "outputs" / student / "run" / "record.json"))
    one, three = records
    assert "3 processes train together" in done.stdout
    assert (one.machine.processes, three.machine.processes) == (1, 3)
    pages = PdfReader(tmp_path / "outputs/three/three_Lab8_Homework.pdf").pages
    text = " ".join(" ".join(page.extract_text() for page in pages).split())
    assert "3 processes trained together" in text
    assert len(one.training.history) == len(three.training.history) == 6
    for row, other in zip(one.training.history, three.training.history):
        # Rounding, and that Muon makes more of: its products are in bfloat16.
        assert other.train_loss == pytest.approx(row.train_loss, rel=5e-3)
        assert other.test_loss == pytest.approx(row.test_loss, rel=5e-3, abs=5e-3)
    assert three.results.correct == one.results.correct


def test_a_lost_process_ends_the_run_in_a_line_and_one_alone_goes_on(tmp_path, images):
    args = [ROOT / "run.py", "--student-id", "x", "--data", images, *ARGS, "--set", "epochs=80"]
    command = list(map(str, [sys.executable, *torchrun(2), *args]))
    with open(tmp_path / "said", "w") as said:
        started = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said)
    checkpoint = tmp_path / "outputs/.x-partial/run/checkpoint.pt"
    until = time.monotonic() + 100
    while not checkpoint.exists() and started.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    ranks = {}
    for line in asked("ps", "-A", "-o", "pid=,ppid=").splitlines():
        pid, parent = map(int, line.split())
        if parent == started.pid:
            ranks[re.search(r"(?<!\S)RANK=(\d+)", asked("ps", "eww", "-o", "command=", "-p", pid))[1]] = pid
    os.kill(ranks["1"], signal.SIGKILL)
    assert started.wait(60) == 1
    lines = [line for line in (tmp_path / "said").read_text().splitlines() if line.startswith("run.py:")]
    assert lines == [
        "run.py: --student-id x --resume --no-verify goes on from the last epoch",
        "run.py: one of the 2 processes of this run was lost, or torchrun was stopped",
    ]
    done = run_program(ROOT / "run.py", "--student-id", "x", "--resume", "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "outputs/x/run/record.json")
    assert (len(record.training.history), record.machine.processes) == (80, 1)


def test_what_does_not_train_is_done_by_one_of_them(tmp_path, images):
    program = [*torchrun(2), ROOT / "run.py"]
    done = run_program(*program, "--check", "--data", images, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 classes") == 1
    done = run_program(*program, "--student-id", "x", "--data", "nowhere", cwd=tmp_path)
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("run.py: ") == 1 and "nowhere" in done.stderr
