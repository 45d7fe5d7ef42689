"""The ablation diary: one thing changed at a time, paired, and no claim within the noise."""

import json

import pytest
import torch
from conftest import NEU_SIZES, TINY, make_folder, zip_folder

import diary
import train
import tune
from recipe import InputError, load_recipe, parse_setting

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
    start, settings = diary.load_diary(diary_file, base)
    assert start.epochs == 1
    assert ("pool", "mean") not in settings  # it is the start's own
    for (name, value), recipe in settings.items():
        changed = {k for k, v in recipe.values().items() if v != getattr(start, k)}
        assert changed == (set() if name == "pos_embedding" else {name})
        assert name == "pos_embedding" or getattr(recipe, name) == value


def test_all_runs_of_a_fold_have_its_seed_and_the_start_comes_along(diary_file, base):
    start, settings = diary.load_diary(diary_file, base)
    work = diary.work_of("d.zip", start, settings, folds=3, fold_seed=0, threads=1)
    assert len(work) == 3 * (1 + len(settings))
    assert {(args[1].seed, args[4]) for _, args in work.values()} == {(0, 0), (1, 1), (2, 2)}
    assert next(iter(work)) == "start | fold 0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "it needs a table"),
        ("[values]", "it needs a table"),
        ("[values]\ndepths = [3]", "no hyperparameter is called 'depths'"),
        ("[values]\ndepth = ['deep']", "depth must be a whole number"),
        ("[values]\nimage_size = [31]", "does not divide into patches"),
        ("[start]\ndepths = 3\n[values]\ndepth = [3]", "no hyperparameter is called 'depths'"),
        ("[values]\npos_embedding = ['on']", 'can only be "off"'),
    ],
)
def test_a_diary_that_cannot_be_kept_is_one_line(tmp_path, base, text, message):
    path = tmp_path / "d.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        diary.load_diary(path, base)
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
    diary.forget_positions(model)
    torch.testing.assert_close(model(image), model(shuffled), atol=1e-5, rtol=1e-5)
    optimizer = train.make_optimizer(model, base)
    model.train()(image).sum().backward()
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
    return about | {"errors": errors, "images": 100, "seconds": 2.0} | more


def test_summary_is_the_hand_count():
    rows = [row(None, None, fold, errors) for fold, errors in enumerate((5, 6, 7))]
    rows += [row("depth", 3, fold, errors) for fold, errors in enumerate((9, 10, 11))]
    rows += [row("depth", 9, fold, errors) for fold, errors in enumerate((4, 6, 8))]
    rows += [row("mixup", 0.0, 0, 5) | {"failed": "RuntimeError: no"}, row("mixup", 0.0, 1, 16)]
    record = {"rows": {str(i): r for i, r in enumerate(rows)}}
    record |= {"recipe": {}, "name": "default", "folds": 3, "data": {}, "machine": {}}
    table = diary.summary(json.loads(json.dumps(record)))
    assert json.loads(json.dumps(table)) == table
    assert table["start"]["accuracy"] == pytest.approx(0.94)
    assert table["start"]["sd"] == pytest.approx(0.01)
    assert table["start"]["images"] == 300
    assert table["date"] == "2026-01-03T00:00:00"
    worse, same, half = table["rows"]
    assert (worse["name"], worse["value"], worse["runs"]) == ("depth", 3, 3)
    assert worse["difference"] == pytest.approx(-0.04)
    assert (worse["low"], worse["high"]) == (pytest.approx(-0.04), pytest.approx(-0.04))  # -4 in each pair
    assert worse["within_noise"] is False
    # +1, 0, -1 points: mean 0, standard error 1 / sqrt(3), Student's t 4.303 (two degrees of freedom)
    assert same["high"] == pytest.approx(0.04303 / 3**0.5, abs=1e-5)
    assert same["within_noise"] is True
    assert (half["runs"], half["failed"], half["low"], half["within_noise"]) == (1, 1, None, True)
    assert half["difference"] == pytest.approx(-0.10)

    lines = list(diary.table_of(table))
    assert lines[2].split()[:7] == ["depth", "=", "3", "3", "90.00", "1.00", "-4.00"]
    assert ["within noise" in line for line in lines[1:]] == [False, False, True, True]


def test_a_diary_keeps_every_result_goes_on_and_refuses_other_data(tmp_path, base, diary_file, capsys):
    zip_path = zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "d.zip")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("\n".join(TINY))
    output = tmp_path / "diary.json"
    args = ["--data", zip_path, "--diary", diary_file, "--recipe", recipe, "--folds", "2", "--output", output]
    args = [str(arg) for arg in args]
    assert tune.main(args) == 0
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
    assert tune.main(args) == 0
    again = json.loads(output.read_text())["rows"]
    assert again["depth = 3 | fold 0"]["errors"] == 77
    assert again["depth = 3 | fold 1"]["images"] in (9, 10, 11, 12)

    capsys.readouterr()
    assert tune.main([*args, "--set", "dim=8"]) == 2
    assert "another recipe, data or folds" in capsys.readouterr().err
