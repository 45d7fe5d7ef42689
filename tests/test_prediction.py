"""The finished model on new pictures: `run.py --predict`."""

import csv
import html
import re
import shutil
import stat
import zipfile

import numpy as np
import pytest
import torch
from conftest import call, make_folder, refused, striped, zip_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lab import prediction
from lab.record import Prediction
from lab.scores import find_thresholds
from verify.handed_in import find_bundles


def predict(bundle, *paths, more=()):
    """The rows of predictions.csv and the page, of some pictures."""
    assert call(*bundle.args, "--predict", *paths, *more) == 0
    folder = bundle.folder / "predictions"
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return rows, (folder / "predictions.html").read_text(encoding="utf-8")


@pytest.fixture
def pictures(tmp_path):
    return make_folder(tmp_path / "new", {"one": 3, "two": 2})


def test_the_answers_are_those_of_the_run_to_the_last_digit(copy):
    rows, _ = predict(copy, copy.run / "dataset_split" / "test")
    with open(copy.run / "predictions.csv", newline="", encoding="utf-8") as file:
        stated = [{k: v for k, v in row.items() if k != "true"} for row in csv.DictReader(file)]
    assert rows == stated


def test_weights_of_another_run_are_told(copy, pictures, capsys):
    predict(copy, pictures)
    assert "is not the file" not in capsys.readouterr().out
    weights = torch.load(copy.weights, weights_only=True)
    weights["mlp_head.1.bias"] += 1
    torch.save(weights, copy.weights)
    predict(copy, pictures)
    assert f"{copy.weights.name} is not the file that the run wrote" in capsys.readouterr().out


def test_a_bundle_is_whole_with_its_predictions(copy, pictures):
    predict(copy, pictures)
    bundles, told = find_bundles(copy.folder, copy.folder)
    assert len(bundles) == 1 and not any(line.fails for line in told)


def test_of_two_confidences_that_round_alike_the_larger_one_wins(copy, pictures, monkeypatch):
    monkeypatch.setattr(
        prediction.Predictor,
        "score",
        lambda self, pixels, rows: [np.array([0.49999996, 0.50000004, 0])] * len(rows),
    )
    rows, _ = predict(copy, pictures)
    assert {row["predicted"] for row in rows} == {copy.record.data.classes[1]}


def test_files_folders_and_archives_are_asked_together(copy, pictures, capsys):
    alone, packed = pictures / "one" / "one_1.png", zip_folder(pictures, pictures.parent / "new.zip")
    (pictures / "notes.txt").write_text("not a picture")
    rows, _ = predict(copy, alone, pictures, packed)
    assert [row["file"] for row in rows[:3]] == ["one_1.png", "new/one/one_1.png", "new/one/one_2.png"]
    assert [row["file"] for row in rows[6:]] == [f"new.zip/{path}" for path in
           ("one/one_1.png", "one/one_2.png", "one/one_3.png", "two/two_1.png", "two/two_2.png")]  # fmt: skip
    assert "left out: 1 not images (.txt), as notes.txt" in capsys.readouterr().out


def test_a_link_in_an_archive_is_told(copy, pictures, capsys):
    packed = zip_folder(pictures, pictures.parent / "new.zip")
    with zipfile.ZipFile(packed, "a") as archive:
        link = zipfile.ZipInfo("one/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "one_1.png")
    assert len(predict(copy, packed)[0]) == 5
    assert "link" in capsys.readouterr().out


def test_what_cannot_be_read_is_listed_and_stops_nothing(copy, pictures, capsys):
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not one")
    (pictures / "empty.jpg").touch()
    rows, page = predict(copy, pictures)
    assert len(rows) == 5
    assert "2 files cannot be read" in page
    assert "empty.jpg: OSError: it is empty" in page
    assert "unreadable: broken.png" in capsys.readouterr().out


def test_where_nothing_can_be_read_the_table_of_before_stays(copy, pictures, tmp_path, capsys):
    (tmp_path / "empty.jpg").touch()
    table = copy.folder / "predictions" / "predictions.csv"
    assert "empty.jpg (" in refused(capsys, *copy.args, "--predict", tmp_path / "empty.jpg")
    assert not table.parent.exists()
    predict(copy, pictures)
    before = table.read_text()
    assert "empty.jpg (" in refused(capsys, *copy.args, "--predict", tmp_path / "empty.jpg")
    assert table.read_text() == before


def test_a_picture_whose_name_is_a_formula_is_none_in_the_table(copy, tmp_path):
    striped(0, 1).save(tmp_path / "=1+1.png")
    rows, _ = predict(copy, tmp_path / "=1+1.png")
    assert [row["file"] for row in rows] == ["'=1+1.png"]


def test_pictures_of_two_folders_of_one_name_can_be_told_apart(copy, tmp_path):
    places = [tmp_path / day / "line1" for day in ("monday", "tuesday")]
    for place in places:
        place.mkdir(parents=True)
        striped(0, 1).save(place / "1.png")
    rows, _ = predict(copy, places[0], more=(places[1], places[0]))
    assert [row["file"] for row in rows] == [(place / "1.png").as_posix() for place in places]


def test_less_confident_answers_are_marked(copy, pictures, capsys):
    rows, _ = predict(copy, pictures)
    most = [max(float(v) for k, v in row.items() if k.startswith("confidence ")) for row in rows]
    said = capsys.readouterr().out
    for row in copy.record.results.thresholds:
        none = f"no confidence has 20 answers or more above it of which {row.precision:.0%} are right"
        assert (none if row.confidence is None else f"--threshold {row.confidence:g} marks") in said
    middle = sorted(most)[2]
    rows, page = predict(copy, pictures, more=("--threshold", middle))
    assert [row["sure"] for row in rows] == ["sure" if value >= middle else "unsure" for value in most]
    assert page.count('class="unsure"') == 2
    assert "2 of 5 are marked unsure" in capsys.readouterr().out


def test_pictures_unlike_the_run_s_are_counted(copy, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    striped(0, 1).save(folder / "like.png")
    striped(0, 2, size=80).save(folder / "large.png")
    Image.new("RGB", (40, 40), "white").save(folder / "white.png")
    _, page = predict(copy, folder)
    said = html.unescape(re.sub(r"\s+", " ", page))
    assert "1 of 3 pictures are smaller or larger than the run's (40 x 40)" in said
    assert "1 darker or brighter than nearly all of them" in said
    assert "1 of another mode (L)" in said


def test_the_page_holds_everything_and_shows_the_least_sure(copy, pictures, monkeypatch):
    monkeypatch.setattr(prediction, "SHOWN", 3)
    monkeypatch.setattr(prediction, "AT_ONCE", 2)
    rows, page = predict(copy, pictures)
    assert {url.partition(":")[0] for url in re.findall(r'(?:src|href)="(.*?)"', page)} == {"data"}
    assert page.count('class="frame"') == page.count('class="glow"') == 3
    assert "Shown are the 3 pictures of the least confidence" in page
    most = {row["file"]: max(float(v) for k, v in row.items() if k.startswith("conf")) for row in rows}
    least = sorted(most, key=most.get)[:3]
    assert re.findall(r'<div class="name">(.*?)</div>', page) == least


def test_names_are_text_to_the_page_and_to_the_terminal(copy, tmp_path, capsys):
    folder = tmp_path / "odd"
    folder.mkdir()
    striped(0, 1).save(folder / "<img src=x onerror=alert(1)>.png")
    (folder / "\x1b[2Jcleared.png").write_bytes(b"no picture")
    (folder / "\x1b[2Jnotes.txt").write_text("left out")
    _, page = predict(copy, folder)
    assert "<img src=x" not in page
    assert "\x1b" not in page + capsys.readouterr().out


def test_the_picture_on_the_page_is_the_file_s_own(copy, tmp_path):
    """The rollout is largest where it is 1, and the picture keeps its shape."""
    Image.new("L", (300, 100), 128).save(tmp_path / "long.png")
    record, model = prediction.load_bundle(copy.folder, copy.folder.name)
    predictor = prediction.Predictor(record, model, None, lambda: None)
    (answer,) = predictor.answer([("long.png", tmp_path / "long.png")])
    predictor.illustrate([answer])
    assert answer.rollout.shape == (4, 4)
    assert answer.rollout.max() == 1
    (tmp_path / "small.jpg").write_bytes(answer.picture)
    with Image.open(tmp_path / "small.jpg") as picture:
        assert picture.size[0] == 160
        assert abs(picture.size[1] - 160 / 3) < 1


def test_what_cannot_be_asked_is_refused_in_a_line(copy, tmp_path, capsys):
    assert "there is no such picture, folder or zip" in refused(
        capsys, *copy.args, "--predict", tmp_path / "gone"
    )
    (tmp_path / "nothing").mkdir()
    assert "no pictures in" in refused(capsys, *copy.args, "--predict", tmp_path / "nothing")
    assert "a finished run of this id is needed" in refused(
        capsys, "--student-id", "nobody", "--output-dir", tmp_path, "--predict", tmp_path
    )
    assert "leave --set out" in refused(capsys, *copy.args, "--predict", tmp_path, "--set", "epochs=3")
    assert "from 0 to 1" in refused(capsys, *copy.args, "--predict", tmp_path, "--threshold", "95")
    assert "goes with --predict" in refused(capsys, *copy.args, "--threshold", "0.5")
    shutil.copy(copy.pdf, copy.weights)
    assert "the .pth is not plain weights" in refused(capsys, *copy.args, "--predict", copy.run)


MOSTLY_RIGHT = st.tuples(st.integers(99_000, 99_500), st.integers(0, 30).map(bool))


@given(st.lists(MOSTLY_RIGHT, min_size=18, max_size=60))
def test_a_threshold_of_three_decimals_keeps_as_many_answers_as_its_precision_allows(answers):
    predictions = [
        Prediction(f"a/{i}", "a", "a" if right else "b", [share / 100_000, 1 - share / 100_000])
        for i, (share, right) in enumerate(answers)
    ]
    for found in find_thresholds(predictions):
        reached = {}  # by brute force: each confidence, without what is after its third decimal
        for share, _ in answers:
            threshold = share // 100
            above = [right for other, right in answers if other >= 100 * threshold]
            if len(above) >= 20:
                reached[threshold / 1000] = np.mean(above)
        enough = [share for share, precision in reached.items() if precision >= found.precision]
        assert found.confidence == (min(enough) if enough else None)
