"""ViT against CNN: the same images for all, nothing counted twice, nothing claimed beyond the noise."""

import dataclasses
import errno
import json
from collections import Counter
from concurrent.futures import Executor, Future

import pytest
import torch
from conftest import NEU_SIZES, ROOT, TINY, changed, make_folder, zip_folder

import data
import train
from lab import machine
from lab.findings import StudyData
from lab.recipe import load_recipe, parse_setting
from lab.record import Machine, as_json
from study import cnn, compare, results
from study.__main__ import main
from study.results import read_results
from study.runs import Where

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = [setting.replace("epochs=6", "epochs=2") for setting in TINY]


def tiny(**changes):
    return load_recipe("default", [*map(parse_setting, SETTINGS), *changes.items()])


def parameters(model):
    return sum(p.numel() for p in model.parameters())


class InThisProcess(Executor):
    """In place of fresh processes, which take seconds to import PyTorch."""

    def __init__(self, jobs, context, initializer):
        pass

    def submit(self, call):
        future = Future()
        future.set_result(call())
        return future


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(results, "ProcessPoolExecutor", InThisProcess)


@pytest.fixture
def images(tmp_path):
    folder = make_folder(tmp_path / "d", {"a": 40, "b": 20, "c": 3})
    return data.load_data(folder, tmp_path / "split", tiny())[:2]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", cnn.MAKERS)
def test_every_network_takes_the_recipes_images_and_gives_logits_of_its_seed(name, channels):
    batch = torch.rand(2, channels, 32, 32)
    first, second, other = (
        cnn.MAKERS[name](tiny(channels=channels, seed=seed), 5).eval()(batch) for seed in (0, 0, 1)
    )
    assert first.shape == (2, 5)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_small_cnn_is_of_the_default_vits_size():
    recipe = load_recipe("default")
    vit, small = train.make_model(recipe, 6), cnn.make_cnn(recipe, 6)
    assert parameters(small) == pytest.approx(parameters(vit), rel=0.1)
    shape = (recipe.channels, recipe.image_size, recipe.image_size)
    ratio = cnn.count_mult_adds(small, shape) / cnn.count_mult_adds(vit, shape)
    assert 0.75 < ratio < 1.33


def test_the_residual_blocks_are_torchvisions():
    """At ResNet-18's own widths and depths the hand-written network has its parameters, in its order,
    and with its weights its output."""
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=7).eval()
    ours = cnn.CNN(num_classes=7, channels=3, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2)).eval()
    state = dict(zip(ours.state_dict(), theirs.state_dict().values()))
    ours.load_state_dict(state)
    batch = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(batch), theirs(batch), rtol=1e-4, atol=1e-4)


def test_mult_adds_and_parameters_of_resnet18_are_the_published_ones():
    """torchvision's page of ResNet18_Weights: 11689512 parameters, 1.81 GFLOPS (multiply-adds)."""
    model = cnn.make_resnet18(load_recipe("default", [("channels", 3)]), 1000)
    assert parameters(model) == 11_689_512
    assert cnn.count_mult_adds(model, (3, 224, 224)) == pytest.approx(1.81e9, rel=0.005)


def test_mult_adds_of_the_vit_count_attention_too():
    r = tiny()
    patches = (r.image_size // r.patch_size) ** 2
    n, inner = patches + 1, r.heads * r.dim_head
    block = n * (3 * r.dim * inner + inner * r.dim + 2 * r.dim * r.mlp_dim) + 2 * n * n * inner
    by_hand = patches * r.channels * r.patch_size**2 * r.dim + r.depth * block + r.dim * 5
    assert cnn.count_mult_adds(train.make_model(r, 5), (1, 32, 32)) == by_hand


def test_every_weight_of_the_cnns_is_trained_and_only_matrices_and_kernels_decay():
    for name in ("cnn", "resnet18"):
        model = cnn.MAKERS[name](tiny(), 3)
        (optimizer,) = cnn.make_cnn_optimizers(model, tiny())
        decayed, plain = optimizer.param_groups
        assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        assert {id(m.weight) for m in layers} == {id(p) for p in decayed["params"]}
        assert decayed["weight_decay"] == tiny().weight_decay
        assert plain["weight_decay"] == 0


def test_shares_are_nested_stratified_and_hold_no_test_image(images):
    train, test = images
    parts = {percent: compare.share_of(train, percent, seed=0) for percent in (1, 10, 25, 50, 100)}
    for small, large in zip((1, 10, 25, 50), (10, 25, 50, 100)):
        assert set(parts[small].files) < set(parts[large].files) or parts[small].files == parts[large].files
    # 28, 14 and 2 training images; at least one of each class
    counts = {percent: Counter(file[0] for file in part.files) for percent, part in parts.items()}
    assert counts[1] == {"a": 1, "b": 1, "c": 1}
    assert counts[25] == {"a": 7, "b": 4, "c": 1}
    assert counts[50] == {"a": 14, "b": 7, "c": 1}
    assert parts[100].files == train.files
    for part in parts.values():
        assert len(set(part.files)) == len(part.files)
        assert not set(part.files) & set(test.files)
        for i, file in enumerate(part.files):
            (pixels, label), (whole, number) = part[i], train[train.files.index(file)]
            assert label == number
            assert torch.equal(pixels, whole)
    assert compare.share_of(train, 25, seed=0).files == parts[25].files
    assert compare.share_of(train, 25, seed=1).files != parts[25].files


def test_a_run_keeps_its_figures_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    zip_path = zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "d.zip")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("\n".join(SETTINGS))
    output = tmp_path / "o.json"
    args = ["compare", "--data", str(zip_path), "--recipe", str(recipe), "--output", str(output)]
    args += ["--seeds", "0", "--shares", "50", "100", "--models", "vit", "cnn", "--jobs", "2"]
    with monkeypatch.context() as patched:
        patched.setattr(results, "ProcessPoolExecutor", InThisProcess)
        assert main(args) == 0
    record = json.loads(output.read_text())
    assert len(record["rows"]) == 4
    assert str(tmp_path) not in output.read_text()
    for share, images in ((50, 12), (100, 21)):  # 7 of each class; half of 7 is rounded up
        for name in ("vit", "cnn"):
            row = record["rows"][f"{name} | {share} % | equal steps | seed 0"]
            assert row["train_images"] == images
            assert row["images"] == 9
            assert row["history"][-1]["accuracy"] == pytest.approx(1 - row["errors"] / 9)
            assert [entry["epoch"] for entry in row["history"]] == [1, 2]
            assert 0 < row["history"][0]["seconds"] < row["history"][1]["seconds"]
            assert row["seconds"] == pytest.approx(row["history"][1]["seconds"], abs=1e-3)
            assert row["inference_rate"] > 0
    said = capsys.readouterr().out
    assert said.count("within noise") == 2  # one seed can't tell

    del record["rows"]["cnn | 50 % | equal steps | seed 0"]
    record["rows"]["vit | 50 % | equal steps | seed 0"]["errors"] = 77  # would show if it were run again
    output.write_text(json.dumps(record))
    assert main(changed(args, ["--jobs", "1"])) == 0  # in a process of its own
    assert json.loads(output.read_text())["jobs"] == 1  # this call's
    again = json.loads(output.read_text())["rows"]
    assert again["vit | 50 % | equal steps | seed 0"]["errors"] == 77
    assert again["cnn | 50 % | equal steps | seed 0"]["train_images"] == 12

    assert main([*args, "--epochs", "3"]) == 2
    said = capsys.readouterr().err
    assert "another recipe, data or folds" in said
    assert said.count("\n") == 1
    assert json.loads(output.read_text())["rows"] == again


def test_recorded_rows_without_times_are_gone_on_from(tmp_path):
    written = json.loads((ROOT / "study" / "recorded" / "neu-cls-compare.json").read_text())
    for row in written["rows"].values():
        row["seconds"] = None
    path = tmp_path / "c.json"
    path.write_text(json.dumps(written))
    recorded, said = read_results(path, compare.ComparisonResults), []
    rows = recorded.rows
    about = dataclasses.replace(recorded, machine=MACHINE, jobs=3, rows={})
    found = results.run_study(dict.fromkeys(rows), path, about, said.append)
    assert (found.rows, found.jobs, len(said)) == (rows, 3, len(rows))
    assert list(compare.table_of(compare.summary(found)))


def test_a_network_that_cannot_be_trained_is_a_row_that_says_so(tmp_path):
    folder = make_folder(tmp_path / "d", {"a": 13, "b": 12})  # 9 + 8 images: the last batch has one
    row = compare.run_one(Where(str(folder)), tiny(), "resnet18", 100)
    assert "more than 1 value per channel" in row.failed
    table = compare.summary(results_of({"x": dataclasses.replace(row, date="2026-01-01")})).rows
    assert (table[0].runs, table[0].failed, table[0].accuracy) == (0, 1, None)


MACHINE = Machine("Linux", "3.11", "AMD EPYC", 2, 1, "cpu", None, {})
IMAGES = StudyData("a", "steel.zip", [])


def results_of(rows, recipe=None, images=IMAGES):
    return compare.ComparisonResults(machine=MACHINE, data=images, recipe=recipe or {}, rows=rows)


def rows_of(name, accuracies, seconds, share=100, train_images=10):
    return {
        f"{name} | {share} % | equal steps | seed {seed}": compare.ComparisonRun(
            model=name,
            share=share,
            seed=seed,
            equal="steps",
            threads=1,
            date=f"2026-01-0{1 + seed}",
            errors=round(100 - 100 * accuracy),
            images=100,
            train_images=train_images,
            parameters=5,
            mult_adds=7,
            seconds=seconds,
            inference_rate=3.0 + seed,
            history=[
                compare.Moment(1, seconds / 2, 0.5, 0.5, accuracy / 2),
                compare.Moment(2, seconds, 0.5, 0.5, accuracy),
            ],
        )
        for seed, accuracy in accuracies.items()
    }


def test_each_network_is_tuned_alike_and_trained_with_its_own_values(tmp_path, capsys, in_this_process):
    zip_path = zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "d.zip")
    recipe, output = tmp_path / "tiny.toml", tmp_path / "o.json"
    recipe.write_text("\n".join(SETTINGS))
    args = ["compare", "--data", str(zip_path), "--recipe", str(recipe), "--output", str(output), "--tune"]
    args += ["--seeds", "0", "--shares", "50", "--models", "vit", "cnn", "--equal", "steps", "time"]
    assert main(args) == 0
    tuning = json.loads((tmp_path / "o-tuning.json").read_text())["rows"]
    found = json.loads(output.read_text())
    for name, peak in (("vit", "muon_learning_rate"), ("cnn", "learning_rate")):
        rows = [row for row in tuning.values() if row["model"] == name]
        tried = {(row["values"][peak], row["values"]["mixup"]) for row in rows}
        assert len(tried) == len(rows) == 6  # three rates, with and without mixup
        best = min(rows, key=lambda row: (row["errors"], row["loss"]))
        assert found["tuned"][name] == best["values"]
        assert {row["images"] for row in rows} == {6}  # of the 21 training images: the test split is not seen
    assert set(found["rows"]) == {
        "vit | 50 % | equal steps | seed 0",
        "cnn | 50 % | equal steps | seed 0",
        "cnn | 50 % | equal time | seed 0",
    }
    assert "cnn     50 %   time" in capsys.readouterr().out


def test_a_full_disk_ends_a_study_in_a_line(tmp_path, capsys, monkeypatch, in_this_process):
    folder, recipe = make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "tiny.toml"
    recipe.write_text("\n".join(SETTINGS))

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(results, "write_whole", full)
    args = ["compare", "--data", str(folder), "--recipe", str(recipe), "--output", str(tmp_path / "o.json")]
    assert main([*args, "--models", "vit", "--seeds", "0"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device" in said and "make room there" in said


def test_the_time_of_the_vit_is_met_by_the_number_of_epochs(monkeypatch):
    seconds = {"vit": 0.1, "cnn": 0.04, "resnet18": 0.5}
    monkeypatch.setattr(compare, "seconds_a_step", lambda setup, recipe: seconds[setup])
    recipe = tiny(epochs=8)
    found = {name: compare.in_the_time_of_the_vit(recipe, lambda _, name: name, name) for name in seconds}
    epochs = {name: fitted.epochs for name, fitted in found.items()}
    assert epochs == {"vit": 8, "cnn": 20, "resnet18": 2}


def test_summary_is_the_hand_count(tmp_path):
    rows = rows_of("cnn", {0: 0.90, 1: 0.91, 2: 0.95, 5: 0.10}, seconds=60)
    rows |= rows_of("resnet18", {0: 0.70, 1: 0.68, 2: 0.69}, seconds=300)
    rows |= rows_of("vit", {0: 0.92, 1: 0.90, 2: 0.94}, seconds=40)
    rows |= rows_of("vit", {0: 0.5}, seconds=4, share=10)
    rows |= rows_of("cnn", {0: 0.4}, seconds=4, share=10)
    (tmp_path / "c.json").write_text(as_json(results_of(rows)))
    summary = compare.summary(read_results(tmp_path / "c.json", compare.ComparisonResults))
    assert summary == compare.summary(results_of(rows))
    assert summary.date == "2026-01-06"
    table = summary.rows
    assert [(row.model, row.share) for row in table] == [
        ("vit", 100),
        ("cnn", 100),
        ("resnet18", 100),
        ("vit", 10),
        ("cnn", 10),
    ]
    vit, cnn, resnet, _, few = table
    assert (vit.runs, vit.pairs, vit.difference, vit.within_noise) == (3, 0, None, None)
    assert vit.accuracy == pytest.approx(0.92)
    assert vit.sd == pytest.approx(0.02)
    assert vit.inference_rate == pytest.approx(4)
    # Paired over seeds 0, 1, 2: +2, -1, -1 points; seed 5 has no ViT
    assert cnn.runs == 4
    assert cnn.accuracy == pytest.approx(0.715)
    assert cnn.pairs == 3
    assert cnn.difference == pytest.approx(0, abs=1e-12)
    # Student's t for 95 % and two degrees of freedom is 4.303 in any table; the standard error is 1 point.
    assert (cnn.low, cnn.high) == (pytest.approx(-0.04303, abs=1e-5), pytest.approx(0.04303, abs=1e-5))
    assert cnn.within_noise is True
    # +22, +22, +25 points: mean 23, standard deviation sqrt(3)
    assert resnet.difference == pytest.approx(0.23)
    assert (resnet.low, resnet.high) == (
        pytest.approx(0.18697, abs=1e-5),
        pytest.approx(0.27303, abs=1e-5),
    )
    assert resnet.within_noise is False
    assert (few.sd, few.low, few.within_noise) == (None, None, True)

    lines = list(compare.table_of(summary))
    assert sum("within noise" in line for line in lines) == 2
    assert any(line.split()[:6] == ["resnet18", "100", "%", "steps", "3", "+23.00"] for line in lines)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--models", "vit", "vgg"], "there is no network 'vgg'; there are vit, cnn, resnet18"),
        (["--shares", "0"], "a share must be above 0, to 100"),
        (["--shares", "50", "101"], "a share must be above 0, to 100"),
        (["--jobs", "0"], "--jobs must be 1 or more"),
        (["--epochs", "0"], "epochs must be from 1"),
        (["--seeds", "-1"], "seed must be from 0"),
        (["--recipe", "nope"], "no recipe is called"),
        ([], "there is no such zip or folder"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, extra, message):
    output = tmp_path / "o.json"
    assert main(["compare", "--data", "nowhere.zip", "--output", str(output), *extra]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not output.exists()


def test_a_recipe_that_cannot_fit_in_the_memory_is_refused_before_any_run(
    tmp_path, capsys, images, monkeypatch
):
    monkeypatch.setattr(machine, "available_memory", lambda device: 2e7)
    output = tmp_path / "o.json"
    args = ["compare", "--data", str(tmp_path / "d"), "--output", str(output), "--models", "vit", "cnn"]
    assert main(args) == 2
    assert "batch_size = 32 is too much" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": {}}'])
def test_another_file_is_not_written_over(tmp_path, capsys, images, text):
    output = tmp_path / "o.json"
    output.write_text(text)
    args = ["compare", "--data", str(tmp_path / "d"), "--output", str(output)]
    assert main(args) == 2
    assert "does not hold results of python -m study compare" in capsys.readouterr().err
    assert output.read_text() == text
