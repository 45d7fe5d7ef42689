"""The validation study: honest folds, results kept as they come."""

import json
from collections import Counter

import pytest
import torch
from conftest import NEU_SIZES, TINY, make_folder, zip_folder

import data
import tune
from recipe import load_recipe, parse_setting

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


@pytest.mark.parametrize(
    ("trials", "extra", "message"),
    [
        ("[trials]\n'a' = { epoch = 3 }", [], "did you mean epochs"),
        ("[trials]\n'a' = 3", [], "it needs a table"),
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
