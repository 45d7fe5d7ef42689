"""Studies for the report: recorded ones as recorded, own ones made on what the run asked for."""

import dataclasses
import json

import filelock
import pytest
from conftest import NEU_SIZES, ROOT, TINY, TINY_SETTINGS, call, make_folder, refused, zip_folder
from pypdf import PdfReader
from test_compare import in_this_process  # noqa: F401, a fixture

import run
from lab.errors import InputError
from lab.limits import Limits
from lab.options import FRESH, parse_options
from lab.recipe import load_recipe, parse_setting
from lab.record import as_json
from study import findings

pytestmark = [
    pytest.mark.usefixtures("one_thread", "in_this_process"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]
PLAN = """
[start]
epochs = 1
[values]
depth = [1]
"""


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": {}}', '{"rows": {"a": 3}}'])
@pytest.mark.parametrize(("load", "command"), [("diary", "diary"), ("comparison", "compare")])
def test_a_file_that_holds_no_study_is_refused_in_one_line(tmp_path, load, command, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"x\.json does not hold results of python -m study {command}"):
        findings.load_findings(**{f"{load}_path": path})
    with pytest.raises(InputError, match="cannot read"):
        findings.load_findings(**{f"{load}_path": tmp_path / "none.json"})


def test_a_value_of_another_type_is_refused(tmp_path):
    record = json.loads((findings.STUDIES / "neu-cls-diary.json").read_text())
    next(iter(record["rows"].values()))["errors"] = "3"
    (tmp_path / "d.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"d\.json does not hold results"):
        findings.load_findings(tmp_path / "d.json")


@pytest.mark.parametrize("kept", [0, 1])
def test_a_study_that_has_just_begun_is_refused_before_the_training(tmp_path, kept):
    record = json.loads((findings.STUDIES / "neu-cls-diary.json").read_text())
    started = [key for key in record["rows"] if key.startswith("start")]
    record["rows"] = {key: record["rows"][key] for key in started[:kept]}
    (tmp_path / "d.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"d\.json has no finished runs to show yet: python -m study diary"):
        findings.load_findings(tmp_path / "d.json")


def test_recorded_studies_of_the_project_can_be_read():
    found = findings.load_findings()
    assert found.search is None
    for study in (found.diary, found.comparison):
        assert (ROOT / "study" / "recorded" / study.file).is_file()
        assert study.fresh is False
        assert study.rows
        assert study.data.name == "neu-cls.zip"
    assert found.elsewhere.data.name == found.longer.data.name == "x-sdd.zip"
    assert len(found.diary.rows) == 14
    kinds = {(row.model, row.equal) for row in found.comparison.rows}
    beside = {(name, equal) for name in ("cnn", "resnet18") for equal in ("steps", "time")}
    assert kinds == {("vit", "steps"), *beside}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--budget", "3"], "--budget goes with --study"),
        (["--report-only", "--diary"], "--report-only makes no study"),
        (["--study", "--budget", "x"], "--budget x: give a number of trials"),
        (["--diary", "none.json"], "cannot read none.json"),
        (["--compare", "images.zip"], "does not hold results of python -m study compare"),
    ],
)
def test_studies_that_cannot_be_are_refused_before_any_work(tmp_path, monkeypatch, capsys, extra, message):
    monkeypatch.chdir(tmp_path)
    zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "images.zip")
    source = [] if "--report-only" in extra else ["--data", "images.zip", *TINY_SETTINGS]
    assert message in refused(capsys, "--student-id", "s1", "--quiet", *source, *extra)
    assert not (tmp_path / "outputs" / "s1").exists()


def test_a_search_comes_first_its_recipe_is_trained_and_the_report_tells_of_both(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "dataset.zip")
    args = ["--student-id", "s1", *TINY_SETTINGS, "--set", "epochs=2", "--study", "--budget", "2"]
    assert call(*args, "--no-verify") == 0
    assert "Studies" in capsys.readouterr().out
    study = json.loads((tmp_path / "outputs" / "s1-studies" / "search.json").read_text())
    assert len(study["trials"]) == 2
    record = json.loads((tmp_path / "outputs" / "s1" / "run" / "record.json").read_text())
    changed = study["found"]["best"]["changed"]
    assert record["recipe"]["name"] == ("search" if changed else "default")
    for name, value in changed.items():
        assert record["recipe"]["values"][name] == value
    for name, value in [*map(parse_setting, TINY[:6]), ("epochs", 2)]:  # set by hand, so not searched
        assert record["recipe"]["values"][name] == value
    pdf = PdfReader(tmp_path / "outputs" / "s1" / "s1_Lab8_Homework.pdf")
    text = " ".join(" ".join(page.extract_text() for page in pdf.pages).split())
    assert "Optuna searched" in text
    assert f"{record['findings']['search']['states']['complete']} complete trials" in text

    # New words later, with a diary named then
    recorded, drawn = findings.STUDIES / "neu-cls-diary.json", []
    monkeypatch.setattr(run, "draw", lambda record, *_: drawn.append(record))
    assert call("--student-id", "s1", "--report-only", "--diary", recorded) == 0
    again = json.loads(as_json(drawn.pop()))
    assert again["findings"]["diary"]["fresh"] is True
    assert again["findings"]["search"] == record["findings"]["search"]
    assert again["results"] == record["results"]


def test_studies_within_the_run_are_made_with_its_recipe_device_precision_and_limits(tmp_path, monkeypatch):
    source = zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "d.zip")
    (tmp_path / "plan.toml").write_text(PLAN)
    monkeypatch.setattr(findings, "DIARY_PLAN", tmp_path / "plan.toml")
    monkeypatch.setattr(findings, "SHARES", (100,))
    monkeypatch.setattr(findings, "SEEDS", (0,))
    monkeypatch.setattr(findings, "FOLDS", 2)
    monkeypatch.setattr(findings, "COMPARED_EPOCHS", 2)
    recipe = dataclasses.replace(load_recipe("default", map(parse_setting, TINY)), split_seed=7)
    said, folder = [], tmp_path / "s-studies"
    asked = dataclasses.replace(
        parse_options(["--student-id", "s", "--output-dir", str(tmp_path)]),
        data=source, recipe=recipe, free=frozenset(), study=True, budget="1", diary=FRESH, compare=FRESH,
        device="cpu", settings=tuple(item for item in recipe.as_dict().items() if item[0] != "crop"),
    )  # fmt: skip

    def make(**changes):
        return findings.make_studies(dataclasses.replace(asked, **changes), "fp32", said.append)

    with pytest.raises(InputError, match="more than 9: if that is right, add --limit images=30"):
        make(limits=Limits(images=9))
    with pytest.raises(InputError, match="--device mps: PyTorch finds none here"):
        make(device="mps")

    better, found = make()
    assert better == recipe  # the one trial is the recipe itself
    assert all(study.fresh for study in (found.search, found.diary, found.comparison))
    for name in ("search", "diary", "comparison"):
        results = json.loads((folder / f"{name}.json").read_text())
        rows = results["trials"] if name == "search" else results["rows"].values()
        assert {row["precision"] for row in rows} == {"fp32"}
        assert {row["failure" if name == "search" else "failed"] for row in rows} == {None}
        assert results["machine"]["device"] == "cpu"
        assert (results["settings"] if name == "search" else results["recipe"])["split_seed"] == 7
    assert found.search.searched == ["crop"]
    assert found.search.recipe == recipe
    assert [(row.name, row.value, row.runs) for row in found.diary.rows] == [("depth", 1, 2)]
    assert [(row.model, row.runs) for row in found.comparison.rows] == [("vit", 1), ("cnn", 1), ("cnn", 1)]
    assert [row.equal for row in found.comparison.rows] == ["steps", "steps", "time"]
    assert found.comparison.recipe["epochs"] == 2
    assert not [line for line in said if "--" in line]  # no flag of another command
    _, again = make()
    assert (again.diary, again.comparison) == (found.diary, found.comparison)  # nothing was run again
    assert again.search.seconds == found.search.seconds


def test_two_runs_do_not_write_the_same_studies(tmp_path):
    (tmp_path / "s-studies").mkdir()
    asked = ["--student-id", "s", "--output-dir", str(tmp_path), "--data", "d.zip", "--study"]
    with (
        filelock.FileLock(tmp_path / "s-studies" / "lock"),
        pytest.raises(InputError, match="another run makes studies"),
    ):
        findings.make_studies(parse_options(asked), "fp32", print)
