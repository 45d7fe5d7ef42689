"""Machines with too little memory, without a home folder, or that let a run write nowhere."""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, TINY_ARGS, make_folder

import data
import run
import train
from lab import errors, machine, training
from lab.errors import InputError
from lab.recipe import Recipe, load_recipe, named_recipes, parse_setting

CPU = torch.device("cpu")


def tiny(**changes):
    return load_recipe("default", [*map(parse_setting, TINY), *changes.items()])


# Memory that a recipe takes


def kept_for_backward(model, batch, precision):
    """Bytes that autograd keeps for the backward pass, without the parameters: PyTorch's own account."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    dtype = training.DTYPES[precision]
    with hooks, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"patch_size": 2}, {"dim": 128, "depth": 3}, {"mlp_dim": 512, "channels": 3}, {"heads": 8}],
)
def test_the_least_memory_is_below_what_training_takes_and_near_it(changes, precision):
    recipe, count = tiny(**changes), 16
    model = train.make_model(recipe, 3)
    optimizers = train.make_optimizers(model, recipe)
    batch = torch.randn(count, recipe.channels, recipe.image_size, recipe.image_size)
    activations = kept_for_backward(model, batch, precision) + batch.nbytes
    model(batch).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    moments = [t for o in optimizers for state in o.state.values() for t in state.values()]
    weights = sum(t.nbytes for p in model.parameters() for t in (p, p.grad)) + sum(t.nbytes for t in moments)

    held, image = machine.least_memory(recipe, 3, precision)
    assert 0.9 * weights < held <= weights
    assert 0.4 * activations < image * count <= activations


@pytest.mark.parametrize("name", named_recipes())
def test_no_recipe_of_ours_is_refused_on_a_small_machine(name, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda device: 1e9)
    machine.check_memory(load_recipe(name), CPU, "fp32", images=200_000, classes=100)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("dim=512", "dim = 512"),
        ("depth=40", "depth = 40"),
        ("mlp_dim=8192", "mlp_dim = 8192"),
        ("dim_head=512", "dim_head = 512"),
        ("patch_size=1", "image_size = 32 with patch_size = 1"),
        ("batch_size=1000", "batch_size = 1000"),
    ],
)
def test_a_recipe_that_cannot_fit_names_the_value(tmp_path, monkeypatch, capsys, setting, named):
    make_folder(tmp_path / "d", {"a": 100, "b": 100})
    monkeypatch.setattr(machine, "available_memory", lambda device: 3e6)
    args = ["--student-id=1", f"--data={tmp_path / 'd'}", f"--output-dir={tmp_path / 'o'}", "--quiet"]
    assert run.main([*args, *TINY_ARGS, "--set", setting]) == 2
    said = capsys.readouterr().err
    assert said.startswith("run.py: training takes at least") and said.count("\n") == 1
    assert f": {named} is too much" in said
    assert {path.name for path in (tmp_path / "o").glob("*")} <= {".1.lock"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_whole_batch_must_fit_on_every_device(monkeypatch, device):
    monkeypatch.setattr(machine, "available_memory", lambda device: 3e6)
    with pytest.raises(InputError, match="batch_size = 10000 is too much"):
        machine.check_memory(tiny(batch_size=10_000), torch.device(device), "bf16", images=100_000)
    with pytest.raises(InputError, match="image_size = 32 with patch_size = 1 is too much"):
        machine.check_memory(tiny(patch_size=1), torch.device(device), "bf16")


def test_the_memory_of_this_machine_is_found_and_one_that_does_not_tell_refuses_nothing(monkeypatch):
    assert 1e8 < machine.available_memory(CPU) < 1e14
    monkeypatch.setattr(machine, "available_memory", lambda device: None)
    machine.check_memory(Recipe(dim=16384, depth=256), CPU, "fp32")


# Pixels that are too many for the memory


def test_pixels_are_in_memory_or_in_a_file_without_holes(tmp_path, monkeypatch):
    memmap, blocks = np.memmap, []

    def look(file, *args, **kwargs):
        blocks.append(os.fstat(file.fileno()).st_blocks * 512)
        return memmap(file, *args, **kwargs)

    monkeypatch.setattr(np, "memmap", look)
    monkeypatch.setattr(machine, "memory_size", lambda: 4 * 3_000_000)
    make = machine.pixel_store(tmp_path)
    assert not isinstance(make((3, 1, 1000, 1000), np.uint8), memmap)
    stored = make((4, 1, 1000, 1000), np.uint8)
    assert isinstance(stored, memmap) and stored.shape == (4, 1, 1000, 1000)
    assert blocks[0] >= 4_000_000  # a hole on a full disk would end the process, without a word
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_pixels_anywhere_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_size", lambda: 0)
    line = r"GB of pixels fit neither in memory nor in .* \(.*\): make room, or choose a smaller image_size"
    with pytest.raises(InputError, match=line):
        machine.pixel_store(tmp_path)((1, 1 << 62), np.uint8)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=line):
        data.read_pixels([tmp_path / "x.png"], 8, 1, store=machine.pixel_store(tmp_path))
    assert list(tmp_path.iterdir()) == []


# Folders that cannot be written to


def obey_permissions():
    """Before a program starts as root: it may do only what the permission bits say, as other users."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


def run_as_user(*args, cwd, **environment):
    """run.py in a process that permission bits bind, with these environment variables; None: without."""
    variables = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-W", "error", ROOT / "run.py", *map(str, args)],
        cwd=cwd, env={name: value for name, value in variables.items() if value is not None},
        preexec_fn=obey_permissions, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def read_only(tmp_path):
    """A folder with images in it that nobody may write to."""
    folder = tmp_path / "read only"
    make_folder(folder / "dataset", {"a": 10, "b": 10})
    (folder / "home").mkdir()
    (folder / "home").chmod(0o555)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def test_a_run_needs_no_home_and_takes_files_as_windows_saves_them(read_only, tmp_path):
    """Working folder and home read-only, output at a path with spaces and non-Latin letters; a byte order
    mark and CRLF in recipe and answers; every warning is an error."""
    own = tmp_path / "ünser Ördner 資料"
    own.mkdir()
    (own / "règle.toml").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TINY).encode())
    (own / "q06.md").write_bytes(b"\xef\xbb\xbfOne *line*,\r\ntwo.\r\n\r\n$$\r\nx^2\r\n$$\r\n")
    args = ["--student-id", "1", "--recipe", own / "règle.toml", "--set", "epochs=1", "--answers", own]
    args += ["--output-dir", own / "aus gabe", "--no-verify", "--quiet"]
    homes = dict.fromkeys(("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"))
    homes["HOME"] = str(read_only / "home")

    done = run_as_user(*args, cwd=read_only, OMP_NUM_THREADS="1", **homes)

    assert (done.returncode, done.stderr) == (0, "")
    page = (own / "aus gabe" / "1" / "run" / "report.html").read_text(encoding="utf-8")
    assert "<p>One <em>line</em>,\ntwo.</p>" in page
    assert 'alt="x squared"' in page
    assert list((read_only / "home").iterdir()) == []


def test_where_nothing_can_be_written_the_line_says_so_before_any_work(read_only):
    refused = run_as_user("--student-id", "1", *TINY_ARGS, "--quiet", cwd=read_only)
    said = "run.py: cannot write to outputs: Permission denied; name another folder\n"
    assert (refused.returncode, refused.stderr) == (2, said)


def test_a_read_only_bundle_can_not_be_drawn_again_and_stays_as_it_is(bundle, tmp_path):
    copy = tmp_path / "outputs" / "0812345"
    shutil.copytree(bundle.folder, copy)
    copy.chmod(0o555)
    refused = run_as_user("--student-id", "0812345", "--report-only", "--quiet", cwd=tmp_path)
    copy.chmod(0o755)
    assert refused.returncode == 2
    assert refused.stderr.startswith("run.py: Permission denied") and refused.stderr.count("\n") == 1
    assert (copy / bundle.pdf.name).read_bytes() == bundle.pdf.read_bytes()


@pytest.mark.parametrize("home", [None, "/dev/null/home"])
def test_without_a_home_folder_caches_go_to_a_temporary_one(tmp_path, monkeypatch, home):
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HOME"):
        monkeypatch.setenv(name, "x")  # so that it is put back at the end
        monkeypatch.delenv(name)
    if home:
        monkeypatch.setenv("HOME", home)
    else:  # nor does the system know one
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(machine.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    machine.keep_caches_writable()
    assert os.environ["MPLCONFIGDIR"] == os.environ["XDG_CACHE_HOME"] == str(tmp_path)


def test_a_home_that_can_be_written_to_is_used(tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    machine.keep_caches_writable()
    assert "MPLCONFIGDIR" not in os.environ and "XDG_CACHE_HOME" not in os.environ


def test_no_room_for_temporary_files_is_one_clear_line(monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(machine.tempfile, "gettempdir", none)
    with pytest.raises(InputError, match=r"no temporary files can be written .*: set TMPDIR"):
        machine.keep_caches_writable()


def test_a_full_place_for_temporary_files_is_named(monkeypatch):
    """The system says so of a write without telling where."""
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(errors.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    monkeypatch.setattr(errors.tempfile, "gettempdir", lambda: "/scratch")
    assert errors.explain(full) == "No space left on device in /scratch (TMPDIR): make room there"
    full.filename = "o/x"
    assert errors.explain(full) == "No space left on device 'o/x': make room there"
