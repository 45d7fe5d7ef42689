"""Machines with too little memory, without a home folder, or that let a run write nowhere."""

import ctypes
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, TINY_ARGS, make_folder

import data
import machine
import run
import train
from recipe import InputError, Recipe, load_recipe, named_recipes, parse_setting

CPU = torch.device("cpu")


def tiny(**changes):
    return load_recipe("default", [*map(parse_setting, TINY), *changes.items()])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    home = tmp_path_factory.mktemp("machine")
    make_folder(home / "d", {"a": 20, "b": 20, "c": 20})
    return data.load_data(home / "d", home / "split", tiny())


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
    with hooks, train.autocast(CPU, precision):
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
    optimizer = train.make_optimizer(model, recipe)
    batch = torch.randn(count, recipe.channels, recipe.image_size, recipe.image_size)
    activations = kept_for_backward(model, batch, precision) + batch.nbytes
    model(batch).sum().backward()
    optimizer.step()
    moments = [t for o in optimizer.both for state in o.state.values() for t in state.values()]
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
def test_a_recipe_that_can_not_fit_names_the_value_before_any_work(
    tmp_path, monkeypatch, capsys, setting, named
):
    make_folder(tmp_path / "d", {"a": 100, "b": 100})
    monkeypatch.setattr(machine, "available_memory", lambda device: 3e6)
    args = [
        "--student-id",
        "1",
        "--data",
        str(tmp_path / "d"),
        "--output-dir",
        str(tmp_path / "o"),
        "--quiet",
    ]
    assert run.main([*args, *TINY_ARGS, "--set", setting]) == 2
    said = capsys.readouterr().err
    assert said.startswith("run.py: training takes at least") and said.count("\n") == 1
    assert f": {named} is too much" in said
    assert list((tmp_path / "o").glob("*")) == []


def test_a_gpu_cuts_batches_itself_so_only_one_image_must_fit(monkeypatch):
    recipe, cuda = tiny(batch_size=10_000), torch.device("cuda")
    monkeypatch.setattr(machine, "available_memory", lambda device: 3e6)
    machine.check_memory(recipe, cuda, "bf16", images=100_000)
    with pytest.raises(InputError, match="batch_size = 10000 is too much"):
        machine.check_memory(recipe, CPU, "bf16", images=100_000)
    with pytest.raises(InputError, match="image_size = 32 with patch_size = 1 is too much"):
        machine.check_memory(tiny(patch_size=1), cuda, "bf16")


def test_a_machine_that_does_not_tell_its_memory_refuses_nothing(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda device: None)
    machine.check_memory(Recipe(dim=16384, depth=256), CPU, "fp32")


def test_the_memory_of_this_machine_is_found():
    assert 1e8 < machine.available_memory(CPU) < 1e14


def test_images_of_very_many_patches_are_scored_a_few_at_a_time(images):
    assert data.make_loaders(images, Recipe(), CPU)[1].batch_size == 256
    assert data.make_loaders(images, Recipe(image_size=1024, patch_size=16), CPU)[1].batch_size == 3
    assert data.make_loaders(images, Recipe(image_size=4096, patch_size=1), CPU)[1].batch_size == 1


# Memory that runs out


def limit(model, most):
    """`model` on a card that holds no more than `most` images at once."""

    def check(module, args):
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    model.register_forward_pre_hook(check)
    return model


@pytest.mark.parametrize(("most", "part"), [(1, 1), (3, 2), (15, 10), (21, 21)])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_gradients_of_a_batch_in_parts_are_those_of_the_whole_batch(images, most, part, mixup):
    recipe, lines = tiny(batch_size=21, mixup=mixup, label_smoothing=0.1), []
    how = {"scaler": torch.amp.GradScaler(enabled=False), "label_smoothing": recipe.label_smoothing}
    loader, _ = data.make_loaders(images, recipe, CPU)
    batch, target = next(iter(loader))
    whole, cut = train.make_model(recipe, 3), limit(train.make_model(recipe, 3), most)
    loss = torch.nn.functional.cross_entropy(whole(batch), target, label_smoothing=0.1)
    loss.backward()

    loss_in_parts, logits = train.backward(cut, batch, target, loader, lines.append, **how)

    assert loader.part == part
    torch.testing.assert_close(loss_in_parts, loss.detach())
    torch.testing.assert_close(logits, whole(batch).detach(), atol=1e-5, rtol=1e-4)
    for one, other in zip(whole.parameters(), cut.parameters()):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4)
    said = [f"Memory is too small for a whole batch: {part} images at a time, gradients added up"]
    assert lines == (said if part < 21 else [])


def test_training_and_scoring_in_parts_give_the_losses_of_whole_batches(images):
    recipe = tiny(epochs=2, batch_size=16, muon_learning_rate=0.0, learning_rate=1e-4)
    rows, orders = {}, {}
    for most in (64, 3):
        model, loaders = limit(train.make_model(recipe, 3), most), data.make_loaders(images, recipe, CPU)
        rows[most] = list(train.fit(model, *loaders, recipe, log=lambda line: None))
        orders[most] = loaders[0].generator.get_state()
    assert torch.equal(orders[64], orders[3])  # the same order, shifts and flips
    for whole, cut in zip(rows[64], rows[3]):
        assert cut["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-4)
        assert cut["test_loss"] == pytest.approx(whole["test_loss"], rel=1e-4)


def test_other_errors_of_a_model_are_not_taken_for_a_lack_of_memory(images):
    recipe = tiny()
    model, (loader, test_loader) = train.make_model(recipe, 3), data.make_loaders(images, recipe, CPU)

    def fail(module, args):
        raise RuntimeError("something else")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        train.train_epoch(model, train.make_optimizer(model, recipe), loader, [])
    with pytest.raises(RuntimeError, match="something else"):
        train.predict(model, test_loader)
    assert loader.part == recipe.batch_size


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("expected scalar type Float"), False),
    ],
)
def test_errors_that_mean_too_little_memory_are_known(error, lack):
    assert train.is_out_of_memory(error) == lack


@pytest.mark.parametrize("most", [2, 0])
def test_the_command_says_that_it_cuts_batches_or_that_one_image_is_too_many(
    tmp_path, monkeypatch, capsys, most
):
    make_model = train.make_model
    monkeypatch.setattr(train, "make_model", lambda *args: limit(make_model(*args), most))
    args = ["--student-id", "1", "--data", str(make_folder(tmp_path / "d", {"a": 10, "b": 10})), *TINY_ARGS]
    code = run.main([*args, "--set", "epochs=1", "--output-dir", str(tmp_path / "o")])
    said = capsys.readouterr()
    if most:
        assert code == 0
        assert said.out.count("gradients added up") == said.out.count("2 images at a time") == 1
        assert said.err == ""
    else:
        assert code == 2
        assert said.err.count("\n") == 1
        assert "memory is too small, even for one image at a time" in said.err


# Folders that can't be written to


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
        cwd=cwd,
        env={name: value for name, value in variables.items() if value is not None},
        preexec_fn=obey_permissions,
        capture_output=True,
        text=True,
        timeout=300,
    )


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

    done = run_as_user(
        *args,
        "--output-dir",
        own / "aus gabe",
        "--no-verify",
        "--quiet",
        cwd=read_only,
        HOME=str(read_only / "home"),
        XDG_CACHE_HOME=None,
        XDG_CONFIG_HOME=None,
        MPLCONFIGDIR=None,
        OMP_NUM_THREADS="1",
    )

    assert (done.returncode, done.stderr) == (0, "")
    page = (own / "aus gabe" / "1" / "run" / "report.html").read_text(encoding="utf-8")
    assert "<p>One <em>line</em>,\ntwo.</p>" in page
    assert 'alt="x squared"' in page
    assert list((read_only / "home").iterdir()) == []


def test_where_nothing_can_be_written_the_line_says_so_before_any_work(read_only):
    refused = run_as_user("--student-id", "1", *TINY_ARGS, "--quiet", cwd=read_only)
    said = "run.py: can't write to --output-dir outputs: Permission denied; name another\n"
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
