"""The validation study and the search: honest folds, results kept as they come, work that is shared."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import optuna
import pytest
import torch
from conftest import NEU_SIZES, ROOT, TINY, make_folder, zip_folder
from PIL import Image

import data
import search
import train
import tune
from recipe import InputError, load_recipe, named_recipes, parse_setting

TRIALS = """
[trials]
"as it is" = {}
"more epochs" = { epochs = 2 }
"far too fast" = { learning_rate = 10.0, muon_learning_rate = 10.0, weight_decay = 10.0, epochs = 20 }
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text("\n".join(s.replace("epochs=6", "epochs=1") for s in TINY))
    return path


def test_folds_part_the_training_split_and_keep_copies_together(tmp_path):
    folder = make_folder(tmp_path / "d", {"a": 40, "b": 20})
    for first, second in ((1, 2), (3, 30), (7, 8), (20, 21)):
        (folder / "a" / f"a_{first}.png").write_bytes((folder / "a" / f"a_{second}.png").read_bytes())
    recipe = load_recipe("default", map(parse_setting, TINY))
    images = data.load_data(folder, tmp_path / "split", recipe)
    parts = list(tune.folds_of(images, 4, seed=0))
    held_out = [file for part in parts for file in part.test.files]
    assert sorted(held_out) == sorted(images.train.files)  # each once, and no test image
    for part in parts:
        assert sorted(part.train.files + part.test.files) == sorted(images.train.files)
        counts = Counter(file[0] for file in part.test.files)
        assert abs(counts["a"] - 7) <= 1
        assert abs(counts["b"] - 3.5) <= 1
        digests = [{images.pictures[tuple(f.split("/"))].digest for f in side.files} for side in part[1:3]]
        assert not digests[0] & digests[1]
        row = part.test.files.index(part.test.files[-1])
        whole_row = images.train.files.index(part.test.files[-1])
        assert torch.equal(part.test.images[row], images.train.images[whole_row])


def test_a_study_keeps_every_result_and_goes_on_where_it_stopped(tmp_path, recipe_file, capsys):
    zip_path = zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "d.zip")
    (tmp_path / "trials.toml").write_text(TRIALS)
    output = tmp_path / "study.json"
    args = ["--data", zip_path, "--trials", tmp_path / "trials.toml", "--recipe", recipe_file, "--folds", "2"]
    args = [str(arg) for arg in [*args, "--output", output]]
    assert tune.main(args) == 0
    said = capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 6
    for fold in (0, 1):
        assert "loss became" in rows[f"far too fast | fold {fold}"]["failed"]
        assert rows[f"more epochs | fold {fold}"]["recipe"]["epochs"] == 2
        assert rows[f"as it is | fold {fold}"]["images"] in (9, 10, 11, 12)
    wrong = sum(rows[f"as it is | fold {fold}"]["errors"] for fold in (0, 1))
    line = next(line for line in said.splitlines() if line.startswith("as it is"))
    assert line.split()[3:5] == ["2", str(wrong)]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []

    record = json.loads(output.read_text())
    del record["rows"]["as it is | fold 1"]
    record["rows"]["as it is | fold 0"]["errors"] = 7  # would show if it were run again
    output.write_text(json.dumps(record))
    assert tune.main(args) == 0
    again = json.loads(output.read_text())["rows"]
    assert again["as it is | fold 0"]["errors"] == 7
    assert again["as it is | fold 1"]["errors"] == rows["as it is | fold 1"]["errors"]

    zip_path.unlink()
    zip_folder(make_folder(tmp_path / "others", NEU_SIZES | {"one more": 9}), zip_path)
    before = output.read_bytes()
    assert tune.main(args) == 2
    assert "holds runs of another recipe, data or folds" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_a_process_that_the_system_ends_is_one_line_and_loses_no_result(tmp_path):
    output = tmp_path / "o.json"
    runs = tune.run_all({"a": (dict, ()), "b": (os._exit, (9,))}, 1, output, {"what": "a test"})
    assert next(runs)[0] == "a"
    with pytest.raises(InputError, match=r"^b, .*lack of memory: try fewer --jobs; .*o\.json$"):
        next(runs)
    assert list(json.loads(output.read_text())["rows"]) == ["a"]


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
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, trials, extra, message):
    (tmp_path / "t.toml").write_text(trials)
    args = [
        "--data",
        "nowhere.zip",
        "--trials",
        str(tmp_path / "t.toml"),
        "--output",
        str(tmp_path / "o.json"),
    ]
    assert tune.main([*args, *extra]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.json").exists()


# The search.

SMALL = [
    part
    for name in ("patch_size=8", "dim=32", "depth=2", "heads=2", "dim_head=16", "mlp_dim=64")
    for part in ("--set", name)
]
SMALL += ["--set", "batch_size=8"]


@pytest.fixture
def search_args(tmp_path, recipe_file):
    zip_path = zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "d.zip")
    args = ["--data", zip_path, "--recipe", recipe_file, *SMALL, "--output", tmp_path / "study.json"]
    return [str(arg) for arg in args]


def trials_of(path):
    return json.loads(path.read_text())["trials"]


def ended(trials):
    return [t for t in trials if t["state"] in ("complete", "pruned", "failed")]


def test_a_search_leaves_every_trial_and_a_recipe_that_is_not_worse(tmp_path, search_args, capsys):
    assert tune.main([*search_args, "--budget", "3"]) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "study.json").read_text())
    trials = record["trials"]
    assert [t["number"] for t in trials] == [0, 1, 2]
    assert trials[0]["base"]
    assert trials[0]["changed"] == {}
    for trial in trials:
        assert trial["state"] == "complete"
        assert f"trial {trial['number']:3}  complete {trial['accuracy']:.2%}" in said
        assert not {"dim", "depth", "batch_size", "epochs"} & trial["changed"].keys()
    best = max(trials, key=lambda t: (t["accuracy"], -t["loss"]))
    assert record["best"] == best["number"]
    found = load_recipe(tmp_path / "study.toml").values()
    base = load_recipe(search_args[3], [("batch_size", 8)]).values()
    assert {name: value for name, value in found.items() if value != base[name]} == best["changed"]
    # Scored by hand, the found recipe has the very result that is stated for it.
    recipe = load_recipe(tmp_path / "study.toml")
    images = next(tune.folds_of(tune.load_images(search_args[1], recipe), 4, 0))
    row = tune.train_and_score(images, recipe)
    assert 1 - row["errors"] / row["images"] == pytest.approx(best["accuracy"])
    assert row["loss"] == pytest.approx(best["loss"], rel=1e-3)


def test_a_search_does_not_look_at_test_images(tmp_path, search_args):
    assert tune.main([*search_args, "--budget", "1"]) == 0
    recipe = load_recipe("default", map(parse_setting, TINY))
    images = data.load_data(tmp_path / "images", tmp_path / "split", recipe)
    for number, file in enumerate(images.test.files):  # noise in place of all test images
        noise = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / file)
    again = zip_folder(tmp_path / "images", tmp_path / "noise.zip")
    search_args[1], search_args[-1] = str(again), str(tmp_path / "noise.json")
    assert tune.main([*search_args, "--budget", "1"]) == 0
    (one,), (other,) = trials_of(tmp_path / "study.json"), trials_of(tmp_path / "noise.json")
    assert (one["accuracy"], one["loss"]) == (other["accuracy"], other["loss"])


def start_worker(args, grace=60):
    """tune.py in a process of its own, on one thread."""
    code = f"import sys, search, tune; search.BEAT, search.GRACE = 0.3, {grace}; sys.exit(tune.main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what, process, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stopped_search_goes_on(tmp_path, search_args):
    search_args += ["--budget", "2", "--set", "epochs=60"]
    journal = tmp_path / "study.journal"
    process = start_worker(search_args)
    wait_for(lambda: journal.exists() and '"intermediate_value"' in journal.read_text(), process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error == f"tune.py: stopped; the same command goes on from {journal}\n"
    stopped, queued = trials_of(tmp_path / "study.json")
    assert (stopped["state"], queued["state"], queued["again"]) == ("put back", "waiting", 0)

    assert tune.main(search_args) == 0
    trials = trials_of(tmp_path / "study.json")
    assert [t["state"] for t in trials[:2]] == ["put back", "complete"]
    assert trials[1]["base"]  # the recipe itself is not lost
    assert len(ended(trials)) == 2
    assert tune.main(search_args) == 0  # nothing is left to do
    assert trials_of(tmp_path / "study.json") == trials


@pytest.mark.parametrize("storage", ["study.journal", "sqlite:///study.db"])
def test_a_killed_worker_costs_no_trial(tmp_path, search_args, storage):
    storage = storage.replace("study.", f"{tmp_path}/study.")
    search_args += ["--budget", "3", "--set", "epochs=50", "--storage", storage]
    workers = [start_worker(search_args, grace=2) for _ in range(2)]

    def busy():
        """{pid: number} of the trials that run."""
        with contextlib.suppress(KeyError, InputError):  # the study is not there yet
            study = optuna.load_study(study_name="study", storage=search.open_storage(storage))
            running = [t for t in study.trials if t.state.name == "RUNNING" and t.last_step]
            return {int(t.user_attrs["worker"].rpartition(":")[2]): t.number for t in running}
        return {}

    wait_for((tmp_path / storage.rpartition("/")[2]).exists, workers[0])
    wait_for(lambda: len(busy()) == 2, workers[0])
    lost = busy()[workers[0].pid]
    workers[0].send_signal(signal.SIGKILL)
    workers[0].wait()
    said, error = workers[1].communicate(timeout=120)
    assert workers[1].returncode == 0, error
    assert f"trial {lost}: its process" in said
    trials = trials_of(tmp_path / "study.json")
    assert trials[lost]["state"] == "put back"
    (again,) = [t for t in trials if t["again"] == lost]
    assert again["changed"] == trials[lost]["changed"]
    assert len(ended(trials)) == 3
    assert len(trials) == 4
    assert sum(t["base"] and t["state"] == "complete" for t in trials) == 1


def test_a_trial_that_kills_two_processes_has_failed(monkeypatch):
    monkeypatch.setattr(search, "GRACE", -1)
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.5})
    signs, said = {}, []
    for _ in range(2):
        study.ask().suggest_float("x", 0, 1)
        for _ in range(3):  # first seen, then lost, then nothing more to do
            search.take_over_lost(study, signs, said.append)
    assert [search.is_counted(trial) for trial in study.trials] == [False, True]
    assert [trial.params for trial in study.trials] == [{"x": 0.5}] * 2
    assert len(said) == 2


def test_a_hopeless_trial_ends_early_and_the_recipe_itself_does_not(tmp_path, recipe_file):
    images = make_folder(tmp_path / "images", NEU_SIZES)
    base = load_recipe(recipe_file, [("epochs", 4)])
    part = next(tune.folds_of(tune.load_images(images, base), 4, 0))
    study = search.open_study(optuna.storages.InMemoryStorage(), "s", {}, {}, base.epochs)
    perfect = {epoch: 1.0 for epoch in range(1, 5)}
    study.add_trials([optuna.create_trial(value=1.0, intermediate_values=perfect)] * search.FIRST)
    first = search.run_trial(study, study.ask(), part, base, {}, math.inf)
    assert (first.state.name, first.last_step) == ("COMPLETE", 4)
    second = search.run_trial(study, study.ask(), part, base, {}, math.inf)
    assert second.state.name == "PRUNED"
    assert second.last_step < 4


def test_failed_trials_say_why_and_the_search_goes_on(tmp_path, search_args, capsys):
    fast = ["epochs=20", "learning_rate=10.0", "muon_learning_rate=10.0", "weight_decay=10.0"]
    search_args += [part for setting in fast for part in ("--set", setting)]
    assert tune.main([*search_args, "--budget", "2"]) == 2
    assert "no trial of the search succeeded" in capsys.readouterr().err
    trials = trials_of(tmp_path / "study.json")
    assert [t["state"] for t in trials] == ["failed"] * 2
    assert all("loss became" in t["failure"] for t in trials)
    assert not (tmp_path / "study.toml").exists()


@pytest.mark.parametrize("name", named_recipes())
def test_every_recipe_lies_in_the_space_around_it(name):
    base = load_recipe(name)
    space = search.space_of(base, ["dim"], 40)
    params = search.params_of(base, space)
    assert search.changes_of(params, base) == {}
    assert "dim" not in space
    for param, value in params.items():
        assert space[param]._contains(space[param].to_internal_repr(value))
    assert all(base.image_size % side == 0 for side in space["patch_size"].choices)
    assert max(space["batch_size"].choices) == 64  # the recipe's own; 128 would never be full
    trial = optuna.create_study().ask()
    search.suggest(trial, space)
    dataclasses.replace(base, **search.changes_of(trial.params, base))  # a recipe that passes its checks


def test_one_more_right_answer_outweighs_any_loss_and_the_loss_decides_between_equals():
    def score(right, loss):
        return search.score_of({"test_accuracy": right / 315, "test_loss": loss}, 315)

    assert score(301, 20.0) > score(300, 0.001)
    assert score(300, 0.1) > score(300, 0.2)


def test_other_settings_do_not_join_a_study(tmp_path, search_args, capsys):
    assert tune.main([*search_args, "--budget", "1"]) == 0
    before = (tmp_path / "study.json").read_text()
    other = zip_folder(make_folder(tmp_path / "more", {"a": 9, "b": 9}), tmp_path / "other.zip")
    for extra, named in (
        (["--set", "epochs=3"], "epochs 1 there, 3 here"),
        (["--fold", "1"], "fold 0 there, 1 here"),
        (["--data", str(other)], "data "),
    ):
        assert tune.main([*search_args, "--budget", "2", *extra]) == 2
        error = capsys.readouterr().err
        assert f"was begun with other settings ({named}" in error
        assert error.count("\n") == 1
    assert (tmp_path / "study.json").read_text() == before


@pytest.mark.parametrize("after", [OSError, RuntimeError, optuna.exceptions.StorageInternalError])
def test_ctrl_c_that_hits_the_storages_lock_puts_the_trial_back(
    tmp_path, capsys, search_args, monkeypatch, after
):
    """Optuna's lock then fails too, and its error hides the Ctrl-C."""

    def stopped(*args, **how):
        try:
            raise KeyboardInterrupt
        finally:
            raise after("the lock was not held")

    with monkeypatch.context() as patched:
        patched.setattr(train, "fit", stopped)
        assert tune.main([*search_args, "--budget", "1"]) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    stopped, queued = trials_of(tmp_path / "study.json")
    assert (stopped["state"], queued["state"], queued["again"]) == ("put back", "waiting", 0)
    assert tune.main([*search_args, "--budget", "1"]) == 0
    assert [trial["state"] for trial in trials_of(tmp_path / "study.json")] == ["put back", "complete"]


def test_only_ctrl_c_counts_as_stopped():
    def following(error):
        try:
            try:
                raise error
            finally:
                raise OSError("the lock was not held")
        except OSError as after:
            return after

    assert search.was_stopped(following(KeyboardInterrupt()))
    assert not search.was_stopped(following(ValueError()))
    assert not search.was_stopped(OSError())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "--trials to compare recipes, --budget to search"),
        (["--budget", "3", "--trials", "x.toml"], "--trials to compare recipes, --budget to search"),
        (["--budget", "0"], "--budget 0: give a number of trials"),
        (["--budget", "10x"], "--budget 10x: give"),
        (["--budget=-3m"], "--budget -3m: give"),
        (["--budget", "0.0h"], "--budget 0.0h: give"),
        (["--budget", "3", "--fold", "4"], "--fold must be from 0 to 3"),
        (["--budget", "3", "--jobs", "2"], "start the command again"),
        (["--budget", "3", "--set", "dims=3"], "did you mean dim?"),
        (["--budget", "3", "--output", "nowhere/o.json"], "there is no folder nowhere"),
        (["--budget", "3", "--output", "o.toml"], "name it .json"),
        (["--trials", "x.toml", "--set", "dim=3"], "don't go with --trials"),
        (["--diary", "x.toml", "--fold", "1"], "go with --budget"),
        (["--diary", "x.toml"], "can't read x.toml"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch, capsys, extra, message):
    monkeypatch.chdir(tmp_path)
    assert tune.main(["--data", "nowhere.zip", "--output", "o.json", *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_other_file_is_replaced_by_a_search(tmp_path, search_args, capsys):
    (tmp_path / "study.json").write_text('{"rows": {}}')
    assert tune.main([*search_args, "--budget", "1"]) == 2
    assert "holds something else than a search" in capsys.readouterr().err
    assert (tmp_path / "study.json").read_text() == '{"rows": {}}'


def test_a_database_that_goes_away_is_one_line(tmp_path, monkeypatch, search_args, capsys):
    fit = train.fit

    def fit_and_drop(*args, **kwargs):
        for row in fit(*args, **kwargs):
            with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as database:
                database.execute("DROP TABLE IF EXISTS trials")
            yield row

    monkeypatch.setattr(train, "fit", fit_and_drop)
    assert tune.main([*search_args, "--budget", "1", "--storage", f"sqlite:///{tmp_path}/s.db"]) == 2
    error = capsys.readouterr().err
    assert "the study's storage failed" in error
    assert "no such table: trials" in error
    assert error.count("\n") == 1
