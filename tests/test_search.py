"""The search: a recipe that is not worse, work that is shared, nothing lost and nothing counted twice."""

import contextlib
import dataclasses
import json
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optuna
import pytest
import torch
from conftest import NEU_SIZES, ROOT, TINY, changed, make_folder, zip_folder
from PIL import Image

import data
from lab import machine, training
from lab.intake import load_images
from lab.recipe import load_recipe, named_recipes, parse_setting
from study import runs, search, space
from study.__main__ import main

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    # Without study.optimize, where single trials are asked for here
    pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed"),
]
SIZES = ("patch_size=8", "dim=32", "depth=2", "heads=2", "dim_head=16", "mlp_dim=64", "batch_size=8")


@pytest.fixture
def args(tmp_path):
    """The command line of a search in a small space, without its budget."""
    (tmp_path / "tiny.toml").write_text("\n".join(s.replace("epochs=6", "epochs=1") for s in TINY))
    zip_path = zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "d.zip")
    sets = [f"--set={text}" for text in SIZES]
    args = ["search", "--data", zip_path, "--recipe", tmp_path / "tiny.toml", *sets]
    return [*map(str, args), "--output", str(tmp_path / "study.json")]


def trials_of(path):
    return json.loads(path.read_text())["trials"]


def ended(trials):
    return [t for t in trials if t["state"] in ("complete", "pruned", "failed")]


def test_the_precision_is_chosen_once_for_all_runs_of_a_study(monkeypatch):
    where = runs.Where("d.zip", "cpu")
    monkeypatch.setattr(machine, "bf16_is_faster", lambda device: where.precision == "fp32")  # the other one
    for there in (where, pickle.loads(pickle.dumps(where)), dataclasses.replace(where, jobs=1)):
        assert there.begin()[1] == there.machine().precision == where.precision


def test_a_search_leaves_every_trial_and_a_recipe_that_is_not_worse(tmp_path, args, capsys):
    assert main([*args, "--budget", "3"]) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "study.json").read_text())
    trials, found = record["trials"], record["found"]
    assert [t["number"] for t in trials] == [0, 1, 2]
    assert trials[0]["base"]
    assert trials[0]["changed"] == {}
    for trial in trials:
        assert trial["state"] == "complete"
        assert f"trial {trial['number']:3}  complete {trial['accuracy']:.2%}" in said
        assert not {"dim", "depth", "batch_size", "epochs"} & trial["changed"].keys()
    best = max(trials, key=lambda t: (t["accuracy"], -t["loss"]))
    assert found["best"]["number"] == best["number"]
    recipe, base = load_recipe(tmp_path / "study.toml"), load_recipe(args[4])
    values = recipe.as_dict().items()
    assert {name: value for name, value in values if value != getattr(base, name)} == best["changed"]
    # Scored by hand, the found recipe has the very result that is stated for it.
    where = runs.Where(args[2])
    run = runs.train_and_score(*runs.fold_of(load_images(args[2], recipe).train, 4, 0), recipe, where)
    assert 1 - run.errors / run.images == pytest.approx(best["accuracy"])
    assert run.loss == pytest.approx(best["loss"], rel=1e-3)


def test_a_search_does_not_look_at_test_images(tmp_path, args):
    assert main([*args, "--budget", "1"]) == 0
    recipe = load_recipe("default", map(parse_setting, TINY))
    _, test, _ = data.load_data(tmp_path / "images", tmp_path / "split", recipe)
    for number, file in enumerate(test.files):  # noise in place of all test images
        noise = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / file)
    args[2], args[-1] = str(zip_folder(tmp_path / "images", tmp_path / "n.zip")), str(tmp_path / "n.json")
    assert main([*args, "--budget", "1"]) == 0
    (one,), (other,) = trials_of(tmp_path / "study.json"), trials_of(tmp_path / "n.json")
    assert (one["accuracy"], one["loss"]) == (other["accuracy"], other["loss"])


def after_first_epoch(monkeypatch, act):
    """Have `act` called once, in the middle of the first trial of this process."""
    epochs, acts = training.epochs, [act]

    def acting(*args, **kwargs):
        for epoch in epochs(*args, **kwargs):
            yield epoch
            while acts:
                acts.pop()()

    monkeypatch.setattr(training, "epochs", acting)


@pytest.mark.parametrize(("name", "times"), [("study.db", 1), ("study.journal", 1), ("study.db", 2)])
def test_a_stopped_search_goes_on(tmp_path, args, monkeypatch, capsys, name, times):
    args += ["--budget", "2", "--set", "epochs=2", "--storage", str(tmp_path / name)]
    went_on = []

    def press():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
            went_on.append(True)

    # A shell lets programs in the background ignore Ctrl-C, and the tests may be started there.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            after_first_epoch(patched, press)
            assert main(args) == 130
    finally:
        signal.signal(signal.SIGINT, ours)
    assert len(went_on) == 1  # to the end of the batch, where it was pressed once
    assert capsys.readouterr().err == "study search: stopped; the same command goes on\n"
    stopped, queued = trials_of(tmp_path / "study.json")
    assert (stopped["state"], queued["state"], queued["again"]) == ("put back", "waiting", 0)
    assert stopped["epochs"] == 1

    assert main(args) == 0
    trials = trials_of(tmp_path / "study.json")
    assert [t["state"] for t in trials[:2]] == ["put back", "complete"]
    assert trials[1]["base"]  # the recipe itself is not lost
    assert len(ended(trials)) == 2
    assert main(args) == 0  # nothing is left to do
    assert trials_of(tmp_path / "study.json") == trials


# A search in a process of its own that stays in the middle of its first trial, until its input ends.
WORKER = """
import sys
from lab import training
from study.__main__ import main
epochs = training.epochs
def held(*args, **kwargs):
    for epoch in epochs(*args, **kwargs):
        yield epoch
        print("training", flush=True)
        sys.stdin.read()
training.epochs = held
sys.exit(main(sys.argv[1:]))
"""


def states_in(path):
    """The state of each trial in a SQLite study."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [state for (state,) in database.execute("SELECT state FROM trials ORDER BY number")]


def age_heartbeats(path, trial):
    """Let the last sign of life of a trial lie a day back, in place of waiting for it to grow old."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        (trial_id,) = database.execute("SELECT trial_id FROM trials WHERE number = ?", [trial]).fetchone()
        change = "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 day') WHERE trial_id = ?"
        assert database.execute(change, [trial_id]).rowcount == 1


def test_a_killed_worker_costs_no_trial_and_none_counts_twice(tmp_path, args, monkeypatch):
    budget = 4
    args += ["--budget", str(budget), "--set", "epochs=2"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    worker = subprocess.Popen([sys.executable, "-c", WORKER, *args], **pipes)
    assert worker.stdout.readline() == "training\n"  # its trial 0

    def kill():
        assert states_in(tmp_path / "study.db") == ["RUNNING", "RUNNING"]
        worker.kill()
        worker.communicate()
        age_heartbeats(tmp_path / "study.db", 0)

    after_first_epoch(monkeypatch, kill)  # in trial 1, here
    assert main(args) == 0
    trials = trials_of(tmp_path / "study.json")
    assert [t["state"] for t in trials].count("put back") == 1
    assert trials[0]["state"] == "put back"
    (again,) = [t for t in trials if t["again"] == 0]
    assert again["state"] == "complete"
    assert again["base"]
    assert trials[0]["base"]
    assert len(ended(trials)) == budget
    assert len(trials) == budget + 1
    assert sum(t["base"] and t["state"] == "complete" for t in trials) == 1


def test_processes_that_start_together_share_a_study_and_never_take_the_same_trial(tmp_path):
    """SQLite has no SELECT FOR UPDATE, which Optuna takes a trial with. Threads with connections of their own
    lock each other out of the file as processes do."""
    together = threading.Barrier(3)

    def take(_):
        together.wait()
        study = search.open_study(search.open_storage(tmp_path / "s.db"), "s", {"a": 1}, {"x": -1}, 9)
        together.wait()
        for number in range(8):
            study.enqueue_trial({"x": number})
        together.wait()
        return [study.ask().number for _ in range(8)]

    with ThreadPoolExecutor(3) as pool:
        taken = [number for numbers in pool.map(take, range(3)) for number in numbers]
    assert len(taken) == len(set(taken)) == 24
    trials = optuna.load_study(study_name="s", storage=search.open_storage(tmp_path / "s.db")).trials
    assert [trial.system_attrs["fixed_params"]["x"] for trial in trials].count(-1) == 1
    assert [trial.number for trial in trials if trial.user_attrs.get("base")] == [0]


def test_a_trial_that_ends_two_processes_is_not_tried_again(tmp_path):
    storage = search.open_storage(tmp_path / "s.db")
    study = optuna.create_study(storage=storage, study_name="s")
    study.enqueue_trial({"x": 0.5}, user_attrs={"base": True})
    for _ in range(2):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        storage.record_heartbeat(trial._trial_id)
        age_heartbeats(tmp_path / "s.db", trial.number)
        optuna.storages.fail_stale_trials(study)
    rows = study.get_trials(deepcopy=False)
    assert [t.params for t in rows] == [{"x": 0.5}] * 2
    assert [t.user_attrs for t in rows] == [{"base": True}] * 2
    assert [search._again(t) for t in rows] == [None, 0]


@pytest.fixture
def parts(args):
    """Two parts of a training split, and the recipe for them."""
    base = load_recipe(args[4], [("epochs", 4)])
    return runs.fold_of(load_images(args[2], base).train, 4, 0), base


def run(parts, base, study, budget, **changes):
    said = []
    objective = search.Objective(parts, base, {}, runs.Where("d.zip"))
    search.run_trials(study, objective, budget, said.append)
    return said


def test_a_hopeless_trial_ends_early_and_the_recipe_itself_does_not(parts):
    parts, base = parts
    study = search.open_study(optuna.storages.InMemoryStorage(), "s", {"a": 1}, {}, base.epochs)
    perfect = {"value": 1.0, "intermediate_values": {epoch: 1.0 for epoch in range(1, 5)}}
    study.add_trials([optuna.create_trial(**perfect, user_attrs={"accuracy": 1.0})] * search.FIRST)
    run(parts, base, study, search.Budget(trials=search.FIRST + 2))
    first, second = [t for t in study.trials if "precision" in t.user_attrs]
    assert (first.state.name, first.last_step) == ("COMPLETE", 4)
    assert second.state.name == "PRUNED"
    assert second.last_step < 4


def test_a_short_time_leaves_one_result_and_puts_the_trial_back_that_it_stopped(parts):
    parts, base = parts
    study = search.open_study(optuna.storages.InMemoryStorage(), "s", {"a": 1}, {}, base.epochs)
    run(parts, base, study, search.Budget(seconds=1e-6))
    assert study.trials[0].state.name == "WAITING"  # not begun
    objective = search.Objective(parts, base, {}, runs.Where("d.zip"), deadline=0.0)
    assert study.optimize(objective, n_trials=1) is None
    assert study.trials[0].state.name == "COMPLETE"
    with pytest.raises(search.TimeUp):
        study.optimize(objective, n_trials=1)
    search.put_back(study, objective.trial)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "WAITING"]


def test_a_part_without_the_last_class_trains_all_the_same(parts):
    (rest, held_out), base = parts
    without = rest.take([i for i, label in enumerate(rest.labels.tolist()) if label != 2])
    for split in (without, rest):
        score = runs.train_and_score(split, held_out, base, runs.Where("d.zip"))
        assert score.failed is None
        assert score.images == len(held_out)


def test_failed_trials_say_why_and_the_search_goes_on(tmp_path, args, capsys):
    fast = ["epochs=20", "learning_rate=10.0", "muon_learning_rate=10.0", "weight_decay=10.0"]
    args += [f"--set={setting}" for setting in fast]
    assert main([*args, "--budget", "2"]) == 2
    assert "no trial of the search succeeded" in capsys.readouterr().err
    trials = trials_of(tmp_path / "study.json")
    assert [t["state"] for t in trials] == ["failed"] * 2
    assert all("loss became" in t["failure"] for t in trials)
    assert not (tmp_path / "study.toml").exists()


@pytest.mark.parametrize("name", named_recipes())
def test_every_recipe_lies_in_the_space_around_it(name):
    base = load_recipe(name)
    kinds = space.space_of(base, ["dim"], 40)
    params = {name: getattr(base, name) for name in kinds}
    assert space.changes_of(params, base) == {}
    assert "dim" not in kinds
    for param, value in params.items():
        assert kinds[param]._contains(kinds[param].to_internal_repr(value))
    assert all(base.image_size % side == 0 for side in kinds["patch_size"].choices)
    # The recipe's own; 128 would never be full.
    assert max(kinds["batch_size"].choices) == max(32, base.batch_size)
    trial = optuna.create_study().ask()
    space.suggest(trial, kinds)
    dataclasses.replace(base, **space.changes_of(trial.params, base))  # a recipe that passes its checks


def test_one_more_right_answer_outweighs_any_loss_and_the_loss_decides_between_equals():
    assert search.score_of(301, 20.0, 315) > search.score_of(300, 0.001, 315)
    assert search.score_of(300, 0.1, 315) > search.score_of(300, 0.2, 315)


def test_other_settings_do_not_join_a_study(tmp_path, args, capsys):
    assert main([*args, "--budget", "1"]) == 0
    before = (tmp_path / "study.json").read_text()
    other = zip_folder(make_folder(tmp_path / "more", {"a": 9, "b": 9}), tmp_path / "other.zip")
    for extra, named in (
        (["--set", "epochs=3"], "epochs 1 there, 3 here"),
        (["--fold", "1"], "fold 0 there, 1 here"),
        (["--data", str(other)], "data "),
    ):
        assert main(changed([*args, "--budget", "2"], extra)) == 2
        error = capsys.readouterr().err
        assert f"was begun with other settings ({named}" in error
        assert error.count("\n") == 1
    assert (tmp_path / "study.json").read_text() == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--budget", "0"], "--budget 0: give a number of trials"),
        (["--budget", "10x"], "--budget 10x: give"),
        (["--budget=-3m"], "--budget -3m: give"),
        (["--budget", "0.0h"], "--budget 0.0h: give"),
        (["--budget", "3", "--fold", "4"], "--fold must be from 0 to 3"),
        (["--budget", "3", "--folds", "1"], "--folds must be from 2 to 20"),
        (["--budget", "3", "--set", "dims=3"], "did you mean dim?"),
        (["--budget", "3", "--output", "nowhere/o.json"], "there is no folder nowhere"),
        (["--budget", "3", "--output", "o.toml"], "name it .json"),
        (["--budget", "3", "--device", "mps"], "--device mps: PyTorch finds none here"),
        (["--budget", "3", "--limit", "image=9"], "--limit image=9: write it as images=N"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch, capsys, extra, message):
    monkeypatch.chdir(tmp_path)
    assert main(changed(["search", "--data", "nowhere.zip", "--output", "o.json"], extra)) == 2
    error = capsys.readouterr().err
    assert error.startswith("study search: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_other_file_is_replaced_by_a_search(tmp_path, args, capsys):
    (tmp_path / "study.json").write_text('{"rows": {}}')
    assert main([*args, "--budget", "1"]) == 2
    assert "does not hold results of python -m study search" in capsys.readouterr().err
    assert (tmp_path / "study.json").read_text() == '{"rows": {}}'


def test_a_database_that_goes_away_is_one_line(tmp_path, monkeypatch, args, capsys):
    epochs = training.epochs

    def epochs_and_drop(*args, **kwargs):
        for epoch in epochs(*args, **kwargs):
            with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database:
                database.execute("DROP TABLE IF EXISTS trials")
            yield epoch

    monkeypatch.setattr(training, "epochs", epochs_and_drop)
    assert main([*args, "--budget", "1"]) == 2
    error = capsys.readouterr().err
    assert "the study's storage failed" in error
    assert "no such table: trials" in error
    assert error.count("\n") == 1


def test_folds_part_the_training_split_and_keep_copies_together(tmp_path):
    folder = make_folder(tmp_path / "d", {"a": 40, "b": 20})
    for first, second in ((1, 2), (3, 30), (7, 8), (20, 21)):
        (folder / "a" / f"a_{first}.png").write_bytes((folder / "a" / f"a_{second}.png").read_bytes())
    recipe = load_recipe("default", map(parse_setting, TINY))
    whole, _, _ = data.load_data(folder, tmp_path / "split", recipe)
    parts = [runs.fold_of(whole, 4, number) for number in range(4)]
    held_out = [file for _, part in parts for file in part.files]
    assert sorted(held_out) == sorted(whole.files)  # each once, and no test image
    for rest, part in parts:
        assert sorted(rest.files + part.files) == sorted(whole.files)
        counts = Counter(file[0] for file in part.files)
        assert abs(counts["a"] - 7) <= 1
        assert abs(counts["b"] - 3.5) <= 1
        assert not set(rest.digests) & set(part.digests)
        row = whole.files.index(part.files[-1])
        assert torch.equal(part[len(part) - 1][0], whole[row][0])
        assert part.pixels is whole.pixels  # a fold costs no copy of the images
