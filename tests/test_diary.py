"""The ablation diary: one thing changed at a time, paired, and no claim within the noise."""

import json
import os
import subprocess
import sys
import time
from functools import partial

import filelock
import pytest
import torch
from conftest import NEU_SIZES, ROOT, TINY, changed, make_folder, zip_folder
from test_compare import IMAGES, MACHINE, in_this_process  # noqa: F401, a fixture

import train
from lab.errors import InputError
from lab.recipe import load_recipe, parse_setting
from lab.record import as_json
from study import diary
from study.__main__ import main
from study.results import Results, Run, read_results, run_all
from study.runs import Where

pytestmark = pytest.mark.usefixtures("one_thread", "in_this_process")
DIARY = """
[start]
epochs = 1
[values]
depth = [2, 3]
pool = ["mean", "cls"]
pos_embedding = ["off"]
learning_rate = [10.0]
"""


@pytest.fixture
def base():
    return load_recipe("default", map(parse_setting, TINY))


@pytest.fixture
def diary_file(tmp_path):
    path = tmp_path / "diary.toml"
    path.write_text(DIARY)
    return path


def test_every_setting_differs_from_the_start_in_one_value(diary_file, base):
    plan = diary.load_plan(diary_file, base)
    start, settings = plan.start, plan.settings
    assert start.epochs == 1
    assert ("pool", "mean") not in settings  # it is the start's own
    for (name, value), recipe in settings.items():
        changed = {k for k, v in recipe.as_dict().items() if v != getattr(start, k)}
        assert changed == (set() if name == "pos_embedding" else {name})
        assert name == "pos_embedding" or getattr(recipe, name) == value


def test_all_runs_of_a_fold_have_its_seed_and_the_start_comes_along(diary_file, base):
    plan = diary.load_plan(diary_file, base)
    work = diary.work_of(Where("d.zip"), plan, 3)
    assert len(work) == 3 * (1 + len(plan.settings))
    assert {(call.args[1].seed, call.args[-1]) for call in work.values()} == {(0, 0), (1, 1), (2, 2)}
    assert next(iter(work)) == "start | fold 0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "it needs a table"),
        ("[values]", "it needs a table"),
        ("[values]\ndepths = [3]", "there is no hyperparameter 'depths'"),
        ("[values]\ndepth = ['deep']", "depth must be a whole number"),
        ("[values]\nimage_size = [31]", "does not divide into patches"),
        ("[start]\ndepths = 3\n[values]\ndepth = [3]", "there is no hyperparameter 'depths'"),
        ("[values]\npos_embedding = ['on']", 'can only be "off"'),
    ],
)
def test_a_diary_that_cannot_be_kept_is_one_line(tmp_path, base, text, message):
    path = tmp_path / "d.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        diary.load_plan(path, base)
    assert message in str(error.value)
    assert "d.toml" in str(error.value)


def test_without_position_embedding_the_order_of_the_patches_is_lost_and_training_brings_none_back(base):
    torch.manual_seed(0)
    model = train.make_model(base, 3)
    image = torch.randn(1, base.channels, base.image_size, base.image_size)
    side = base.patch_size
    patches = image.unfold(2, side, side).unfold(3, side, side)  # b c rows columns p p
    shuffled = patches.flip(2, 3).permute(0, 1, 2, 4, 3, 5).reshape(image.shape)
    assert not torch.allclose(model.eval()(image), model(shuffled), atol=1e-5)
    model = diary.without_positions(base, 3).eval()
    torch.testing.assert_close(model(image), model(shuffled), atol=1e-5, rtol=1e-5)
    model.train()(image).sum().backward()
    for optimizer in train.make_optimizers(model, base):
        optimizer.step()
    assert not model.pos_embedding.any()


def row(name, value, fold, errors, **more):
    about = {
        "name": name,
        "value": value,
        "fold": fold,
        "seed": fold,
        "date": f"2026-01-0{fold + 1}T00:00:00",
    }
    return diary.DiaryRun(**about | {"errors": errors, "images": 100, "seconds": 2.0} | more)


def results_of(rows, folds=3, recipe=None, images=IMAGES):
    return diary.DiaryResults(
        machine=MACHINE,
        data=images,
        name="default",
        recipe=recipe or {},
        folds=folds,
        rows={str(i): row for i, row in enumerate(rows)},
    )


def test_summary_is_the_hand_count(tmp_path):
    rows = [row(None, None, fold, errors) for fold, errors in enumerate((5, 6, 7))]
    rows += [row("depth", 3, fold, errors) for fold, errors in enumerate((9, 10, 11))]
    rows += [row("depth", 9, fold, errors) for fold, errors in enumerate((4, 6, 8))]
    rows += [row("mixup", 0.0, 0, None, failed="RuntimeError: no"), row("mixup", 0.0, 1, 16)]
    (tmp_path / "d.json").write_text(as_json(results_of(rows)))
    table = diary.summary(read_results(tmp_path / "d.json", diary.DiaryResults))
    assert table == diary.summary(results_of(rows))
    assert table.start.accuracy == pytest.approx(0.94)
    assert table.start.sd == pytest.approx(0.01)
    assert table.start.images == 300
    assert table.date == "2026-01-03T00:00:00"
    worse, same, half = table.rows
    assert (worse.name, worse.value, worse.runs) == ("depth", 3, 3)
    assert worse.difference == pytest.approx(-0.04)
    assert (worse.low, worse.high) == (pytest.approx(-0.04), pytest.approx(-0.04))  # -4 in each pair
    assert worse.within_noise is False
    # +1, 0, -1 points: mean 0, standard error 1 / sqrt(3), Student's t 4.303 (two degrees of freedom)
    assert same.high == pytest.approx(0.04303 / 3**0.5, abs=1e-5)
    assert same.within_noise is True
    assert (half.runs, half.failed, half.low, half.within_noise) == (1, 1, None, True)
    assert half.difference == pytest.approx(-0.10)

    lines = list(diary.table_of(table))
    assert lines[2].split()[:8] == ["depth", "=", "3", "3", "90.00", "1.00", "2", "-4.00"]
    assert ["within noise" in line for line in lines[1:]] == [False, False, True, True]


def test_a_diary_keeps_every_result_goes_on_and_refuses_other_data(tmp_path, base, diary_file, capsys):
    zip_path = zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "d.zip")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("\n".join(TINY))
    output = tmp_path / "diary.json"
    args = [
        "diary",
        "--data",
        zip_path,
        "--plan",
        diary_file,
        "--recipe",
        recipe,
        "--folds",
        "2",
        "--output",
        output,
    ]
    args = [str(arg) for arg in args]
    assert main(args) == 0
    said = capsys.readouterr().out
    record = json.loads(output.read_text())
    assert len(record["rows"]) == 10
    assert sum(record["rows"][f"start | fold {fold}"]["images"] for fold in (0, 1)) == 21  # 7 of each class
    assert "10/10" in said
    assert "left" in said
    assert "the recipe itself" in said
    assert str(tmp_path) not in output.read_text()

    del record["rows"]["depth = 3 | fold 1"]
    record["rows"]["depth = 3 | fold 0"]["errors"] = 77  # would show if it were run again
    output.write_text(json.dumps(record))
    assert main(args) == 0
    again = json.loads(output.read_text())["rows"]
    assert again["depth = 3 | fold 0"]["errors"] == 77
    assert again["depth = 3 | fold 1"]["images"] in (9, 10, 11, 12)

    capsys.readouterr()
    assert main([*args, "--set", "dim=8"]) == 2
    assert "another recipe, data or folds" in capsys.readouterr().err


TRIALS = """
[trials]
"as it is" = {}
"more epochs" = { epochs = 2 }
"far too fast" = { learning_rate = 10.0, muon_learning_rate = 10.0, weight_decay = 10.0, epochs = 20 }
"""


def test_trials_keep_failures_too_and_print_the_errors_of_all_folds(tmp_path, capsys):
    zip_path = zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "d.zip")
    (tmp_path / "tiny.toml").write_text("\n".join(s.replace("epochs=6", "epochs=1") for s in TINY))
    (tmp_path / "trials.toml").write_text(TRIALS)
    output = tmp_path / "study.json"
    args = [
        "trials",
        "--data",
        zip_path,
        "--plan",
        tmp_path / "trials.toml",
        "--recipe",
        tmp_path / "tiny.toml",
    ]
    args = [str(arg) for arg in [*args, "--folds", "2", "--output", output]]
    assert main(args) == 0
    said = capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 6
    for fold in (0, 1):
        assert "loss became" in rows[f"far too fast | fold {fold}"]["failed"]
        assert rows[f"more epochs | fold {fold}"]["recipe"]["epochs"] == 2
        assert rows[f"as it is | fold {fold}"]["images"] in (9, 10, 11, 12)
    wrong = sum(rows[f"as it is | fold {fold}"]["errors"] for fold in (0, 1))
    line = next(line for line in said.splitlines() if line.startswith("as it is"))
    assert line.split()[3:5] == [str(wrong), "2"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []

    plan = tmp_path / "trials.toml"
    plan.write_text(TRIALS.replace("epochs = 2 }", "epochs = 3 }"))
    assert main(args) == 2
    assert "holds runs of another recipe as 'more epochs | fold" in capsys.readouterr().err
    plan.write_text(TRIALS)

    zip_path.unlink()
    zip_folder(make_folder(tmp_path / "others", NEU_SIZES | {"one more": 9}), zip_path)
    before = output.read_bytes()
    assert main(args) == 2
    assert "holds runs of another recipe, data or folds" in capsys.readouterr().err
    assert output.read_bytes() == before


@pytest.mark.parametrize("command", ["diary", "trials", "search"])
def test_a_training_set_that_cannot_be_cut_is_one_line_that_names_a_class(tmp_path, capsys, command):
    folder = make_folder(tmp_path / "d", {"a": 4, "b": 5})  # 2 and 3 training images
    (tmp_path / "trials.toml").write_text(TRIALS)
    plan = {"trials": ["--plan", str(tmp_path / "trials.toml")], "search": ["--budget", "1"]}
    args = [command, "--data", str(folder), "--output", str(tmp_path / "o.json"), *plan.get(command, [])]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert "class 'b' has 3 different training images" in error
    assert "too few to cut in 4 folds; add images" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o.json").exists()


def test_a_process_that_the_system_ends_is_one_line_and_loses_no_result(tmp_path, monkeypatch):
    monkeypatch.undo()  # processes, not in_this_process
    output, results = tmp_path / "o.json", Results(what="a test", machine=MACHINE)
    work = run_all({"a": partial(Run, errors=3), "b": partial(os._exit, 9)}, output, results)
    assert next(work)[0] == "a"
    with pytest.raises(InputError, match=r"^b, .*lack of memory: run fewer at once; .*o\.json$") as error:
        next(work)
    assert "--" not in str(error.value)  # another command may have asked for it
    assert list(json.loads(output.read_text())["rows"]) == ["a"]


STUDY = """
import sys, time
from functools import partial
from pathlib import Path
import filelock
from test_compare import MACHINE
from study.results import Results, run_all

def train(path):
    lock = filelock.FileLock(path)  # which the system takes back when this process ends
    lock.acquire()
    Path(path).with_suffix(".begun").touch()
    time.sleep(600)

if __name__ == "__main__":
    list(run_all({"a": partial(train, sys.argv[1])}, Path(sys.argv[2]), Results(what="", machine=MACHINE)))
"""


def test_the_processes_of_a_study_that_is_killed_do_not_train_on(tmp_path):
    lock, path = tmp_path / "a.lock", os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    (tmp_path / "killed.py").write_text(STUDY)
    study = subprocess.Popen(
        [sys.executable, tmp_path / "killed.py", lock, tmp_path / "o.json"],
        env=os.environ | {"PYTHONPATH": path},
    )
    while not lock.with_suffix(".begun").exists():
        assert study.poll() is None
        time.sleep(0.05)
    study.kill()
    study.wait()
    filelock.FileLock(lock).acquire(timeout=60).lock.release()


@pytest.mark.parametrize(
    ("trials", "extra", "message"),
    [
        ("[trials]\n'a' = { epoch = 3 }", [], "did you mean epochs"),
        ("[trials]\n'a' = 3", [], "it needs a table"),
        ("[trials]", [], "it needs a table"),
        ("x = ", [], "not valid TOML"),
        (TRIALS, ["--folds", "1"], "--folds must be from 2 to 20"),
        (TRIALS, ["--recipe", "nope"], "no recipe is called"),
        (TRIALS, ["--jobs", "0"], "--jobs must be 1 or more"),
        (TRIALS, ["--plan", "x.toml"], "cannot read x.toml"),
    ],
)
def test_trials_that_cannot_be_are_one_line(tmp_path, capsys, trials, extra, message):
    (tmp_path / "t.toml").write_text(trials)
    args = ["--data", "nowhere.zip", "--plan", str(tmp_path / "t.toml"), "--output", str(tmp_path / "o.json")]
    assert main(["trials", *changed(args, extra)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.json").exists()
