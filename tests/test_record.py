import csv
import json
import os
import stat

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from lab import scores
from lab.errors import InputError
from lab.files import sha256, write_csv, write_whole
from lab.record import Prediction, Sample, as_json, read_record, write_record

CLASSES = ["accuracy", "b", "c"]  # a class may be called like a row of scikit-learn's report


@pytest.fixture
def results():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    logits = rng.normal(0, 1, (60, 3)) + 2 * np.eye(3)[labels]
    return labels, logits, scores.score(logits, labels, CLASSES, [f"f{i}" for i in range(60)])


def test_scores_agree_with_a_hand_count_and_scikit_learn(results):
    labels, logits, scored = results
    predicted = logits.argmax(1)
    matrix = [[int(((labels == i) & (predicted == j)).sum()) for j in range(3)] for i in range(3)]
    assert scored.confusion_matrix == matrix
    assert scored.correct == sum(matrix[i][i] for i in range(3))
    assert scored.accuracy == scored.correct / 60
    for name, function in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        expected = function(labels, predicted, average=None)
        assert [getattr(scored.per_class[c], name) for c in CLASSES] == pytest.approx(list(expected))
    rows = scored.predictions
    assert all(abs(sum(row.confidences) - 1) < 1e-5 for row in rows)
    assert [row.predicted for row in rows] == [CLASSES[j] for j in predicted]
    confidences, right = [max(row.confidences) for row in rows], predicted == labels
    assert scored.calibration.ece == pytest.approx(
        scores.measure_calibration(confidences, right).ece, abs=1e-4
    )
    assert sum(row.images for row in scored.calibration.bins) == 60
    assert json.loads(as_json(scored))["correct"] == scored.correct


def test_interval_is_wilsons():
    # 435 of 540: the example report's result. Wilson (1927): 77.0 % to 83.7 %.
    labels, logits = np.zeros(540, dtype=int), np.tile([1.0, 0.0], (540, 1))
    logits[435:] = [0.0, 1.0]
    scored = scores.score(logits, labels, ["a", "b"], [""] * 540)
    p, n, z = 435 / 540, 540, 1.959964
    centre, spread = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)]
    assert scored.interval == pytest.approx(expected, abs=1e-6)
    assert scored.passed is True
    assert scored.per_class["b"].recall == 0  # no image of the class: 0, not NaN


def test_the_baseline_is_at_least_60_percent():
    labels = np.repeat([0, 1], [60, 40])
    right_first = np.tile([1.0, 0.0], (100, 1))
    assert scores.score(right_first, labels, ["a", "b"], [""] * 100).passed is True
    labels[59] = 1
    assert scores.score(right_first, labels, ["a", "b"], [""] * 100).passed is False


def prediction(name, true, predicted, confidence):
    return Prediction(name, true, predicted, [confidence])


def test_examples_show_right_ones_and_the_most_confident_mistakes():
    predictions = [prediction(f"a{i}", "a", "a", 0.9) for i in range(6)]
    predictions += [prediction(f"a{i}", "a", "b", c) for i, c in ((7, 0.5), (8, 0.8), (9, 0.7))]
    predictions += [prediction("b0", "b", "b", 0.9)]
    predictions += [prediction(f"b{i}", "b", "a", 0.5) for i in range(1, 9)]
    predictions += [prediction(f"c{i}", "c", "c", 0.9) for i in range(9)]
    predictions += [prediction("d0", "d", "d", 0.9)]
    chosen = scores.choose_examples(predictions, list("abcd"))
    assert [p.file for p in chosen[:4]] == ["a0", "a1", "a8", "a9"]
    assert [p.file for p in chosen[4:8]] == ["b0", "b1", "b2", "b3"]
    assert [p.file for p in chosen[8:12]] == ["c0", "c1", "c2", "c3"]
    assert [p.file for p in chosen[12:]] == ["d0"]


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, {"name": "林"})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_record(path, {"loss": float("nan")})
    with pytest.raises(TypeError):
        write_whole(path, 3.5)
    assert json.loads(path.read_text("utf-8")) == {"name": "林"}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    write_csv(path, ["a", "b"], [['x, "y"', 1]])  # a name may have commas
    assert list(csv.reader(path.read_text().splitlines())) == [["a", "b"], ['x, "y"', "1"]]
    write_csv(path, ["a", "b"], [["=HYPERLINK(1)", -1.5]])  # nor is it a formula; a number is
    assert path.read_text() == "a,b\n'=HYPERLINK(1),-1.5\n"


def test_a_power_cut_finds_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    """The content is on the disk before the rename, the rename before the function returns."""
    done, fsync, replace = [], os.fsync, os.replace

    def noted_fsync(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else os.fstat(handle).st_size)
        fsync(handle)

    def noted_replace(*paths):
        done.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_whole(tmp_path / "f", b"12345")
    assert done == [5, "rename", "folder"]
    assert sha256(tmp_path / "f") == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"


def test_the_record_of_a_renamed_bundle_is_not_taken_for_another_students(bundle):
    path = bundle.run / "record.json"
    assert read_record(path, "0812345") == read_record(path)
    with pytest.raises(InputError, match="is of student 0812345"):
        read_record(path, "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0" * 40, "is damaged .*--force"),
        (b'{"schema": 4, "recipe": {"values": {}}}', "another version: run again with --force"),
        (b'{"schema": 3, "recipe": {"values": {}}}', "another version"),
        (b"[]", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (None, "there is no .*a finished run of this id is needed"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_line(tmp_path, content, message):
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


def test_calibration_error_agrees_with_a_hand_count():
    #               bin (0.5, 0.6]  (0.6, 0.7]    (0.9, 1.0]
    confidences = [0.55, 0.60, 0.65, 0.65, 0.65, 0.95, 1.00, 0.91]
    right = [1, 0, 1, 1, 0, 1, 1, 0]
    scored = scores.measure_calibration(confidences, np.array(right, dtype=bool))
    by_hand = 2 / 8 * abs(1 / 2 - 0.575) + 3 / 8 * abs(2 / 3 - 0.65) + 3 / 8 * abs(2 / 3 - 2.86 / 3)
    assert scored.ece == pytest.approx(by_hand)
    assert [row.images for row in scored.bins] == [0, 0, 0, 0, 0, 2, 3, 0, 0, 3]
    assert scored.bins[0].accuracy is None
    assert scored.bins[9].accuracy == pytest.approx(2 / 3)
    for bins in (3, 7, 10):  # an upper edge belongs to its bin, also where it is no exact number
        edges = [i / bins for i in range(1, bins + 1)]
        counted = scores.measure_calibration(edges, np.ones(bins, bool), bins).bins
        assert [row.images for row in counted] == [1] * bins


def test_worst_mistakes_come_first_and_rollouts_spread_over_the_classes():
    predictions = [prediction("a/1", "a", "b", 0.6), prediction("a/2", "a", "a", 0.9)]
    predictions += [prediction("b/1", "b", "a", 0.8), prediction("c/1", "c", "c", 0.7)]
    assert [p.file for p in scores.choose_mistakes(predictions)] == ["b/1", "a/1"]
    assert [p.file for p in scores.choose_mistakes(predictions, 1)] == ["b/1"]
    chosen = scores.choose_rollouts(predictions, list("abc"))
    assert [p.file for p in chosen] == ["a/2", "a/1", "b/1", "c/1"]
    names = [f"class{i:02}" for i in range(40)]
    many = [prediction(f"{n}/{i}", n, n if i else "x", 0.5) for n in names for i in range(3)]
    chosen = scores.choose_rollouts(many, names)
    assert [p.true for p in chosen] == [names[i] for i in (0, 6, 13, 20, 26, 33)]
    assert all(p.true == p.predicted for p in chosen)


def test_samples_are_the_first_of_each_class():
    files = ["a/1", "a/2", "a/3", "b/1"]
    assert scores.choose_samples(files) == [Sample("a/1", "a"), Sample("a/2", "a"), Sample("b/1", "b")]
