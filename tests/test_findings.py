"""What the report says of studies: recorded ones as recorded, own ones as measured, no noise as a result."""

import copy
import json

import pytest
from conftest import NEU_SIZES, ROOT, TINY, make_folder, run_program, zip_folder
from pypdf import PdfReader
from test_compare import rows_of
from test_diary import row

import compare
import diary
import findings
import tune
from recipe import InputError, Recipe, load_recipe, parse_setting
from report import answers, render

MACHINE = {"gpu": None, "processor": "AMD EPYC", "cores": 2}
DATA = {"name": "steel.zip", "fingerprint": "a"}
ABOUT = {"recipe": Recipe().values() | {"epochs": 15}, "data": DATA, "machine": MACHINE}


def diary_record(**errors):
    """A results file of a diary: errors of 100 images in four folds, for each changed value."""
    rows = [row(None, None, fold, 5) for fold in range(4)]
    for name, wrong in errors.items():
        rows += [row(name, 9, fold, count) for fold, count in enumerate(wrong)]
    return ABOUT | {"name": "default", "folds": 4, "rows": {str(i): r for i, r in enumerate(rows)}}


def comparison_record(vit, cnn):
    rows = {}
    for share in (100, 10):
        for name, scores in (("vit", vit), ("cnn", cnn)):
            rows |= rows_of(name, dict(enumerate(scores[share])), 40 if name == "vit" else 60, share)
    for key, one in rows.items():
        one["train_images"] = 1000 if "100 %" in key else 100
    return ABOUT | {"rows": rows}


@pytest.fixture
def record(bundle):
    return json.loads((bundle.run / "record.json").read_text())


def question(record, bundle, key):
    return answers.answer_texts(record)[key][1].replace("\\", "")  # without Markdown's escapes


def test_a_recorded_study_is_shown_as_recorded_with_date_machine_and_data(record, bundle):
    found = diary.summary(diary_record(depth=[5, 6, 5, 6])) | {"fresh": False, "file": "neu-cls-diary.json"}
    record["findings"]["diary"] = found
    text = question(record, bundle, "q07").replace("\n", " ")
    assert "recorded on other images (steel.zip), not measured in this run" in text
    assert "2026-01-04, AMD EPYC, 2 cores" in text
    assert "studies/neu-cls-diary.json" in text
    assert "with 15 epochs" in text
    record["data"]["fingerprint"] = "a"
    assert "recorded on this run’s images, not measured in this run" in question(record, bundle, "q07")
    record["findings"]["diary"]["fresh"] = True
    assert "measured on this run’s images for this report" in question(record, bundle, "q07")
    assert "not measured" not in question(record, bundle, "q07")


def test_question_7_calls_noise_noise_and_names_what_is_beyond_it(record, bundle):
    found = diary.summary(diary_record(depth=[5, 6, 4, 5], mlp_dim=[25, 26, 24, 25], heads=[1, 2, 1, 2]))
    record["findings"]["diary"] = found | {"fresh": True, "file": "d.json"}
    text = question(record, bundle, "q07").replace("\u202f", " ")
    table = {
        line.split("|")[1].strip(): line.split("|")[5].strip()
        for line in text.splitlines()
        if line[:2] == "| "
    }
    assert table["Encoder blocks"] == "6 → 9: 0.0 n.s."
    assert table["MLP width"] == "256 → 9: −20.0"
    assert table["Heads"] == "4 → 9: +3.5"
    assert table["Image size, pixels"] == ""
    assert "MLP width 9 −20.0" in text.split("largest losses")[1].split(".\n")[0]
    assert "heads 9 +3.5" in text.split("Better than the recipe")[1]
    assert "Of 3 changes 1 is within noise" in text


@pytest.mark.parametrize(
    ("vit", "cnn", "words"),
    [
        ((0.99, 0.98, 0.99), (0.95, 0.95, 0.96), "With 1,000 images the ViT is to be preferred"),
        ((0.95, 0.95, 0.96), (0.99, 0.98, 0.99), "With 1,000 images the CNN is to be preferred"),
        ((0.99, 0.95, 0.97), (0.97, 0.98, 0.96), "With 1,000 and 100 images no difference is shown"),
    ],
)
def test_question_8_says_who_is_ahead_only_beyond_noise(record, bundle, vit, cnn, words):
    few = (0.7, 0.71, 0.7)
    made = comparison_record({100: vit, 10: few}, {100: cnn, 10: few})
    record["findings"]["comparison"] = compare.summary(made) | {"fresh": False, "file": "c.json"}
    text = " ".join(question(record, bundle, "q08").split())
    assert words in text
    assert "100 images no difference is shown" in text
    assert ("to be preferred" in text) is ("to be preferred" in words)
    assert "not measured in this run" in text


def test_without_any_study_the_answers_claim_none(record, bundle):
    record["findings"] = dict.fromkeys(record["findings"])
    text = " ".join(text for _, text in answers.answer_texts(record).values())
    assert "diary" not in text
    assert "no difference between the two" in text
    page = render.render_html(record, bundle.run)
    assert 'id="diary"' not in page
    assert 'id="shares"' not in page


def test_figures_of_studies_have_captions_links_and_all_numbers_in_words(record, bundle):
    found = diary.summary(diary_record(depth=[5, 6, 5, 6], mlp_dim=[25, 26, 24, 25]))
    record["findings"]["diary"] = found | {"fresh": True, "file": "d.json"}
    scores = {100: (0.99, 0.98, 0.99), 10: (0.7, 0.71, 0.7)}
    made = compare.summary(comparison_record(scores, scores))
    record["findings"]["comparison"] = made | {"fresh": True, "file": "c.json"}
    page = render.render_html(record, bundle.run)
    for name, words in (
        ("diary", "MLP width 9: −20.0 (−21.3 to −18.7)"),
        ("shares", "CNN, 100 images: 70.3"),
    ):
        figure = page.split(f'<figure class="plot" id="{name}">')[1].split("</figure>")[0]
        assert words in figure.split('alt="')[1].split('"')[0]
        assert "AMD EPYC" in figure.split("<figcaption>")[1]
        assert f'<a href="#{name}">Figure ' in page


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": {}}', '{"rows": {"a": 3}}'])
@pytest.mark.parametrize("kind", ["diary", "comparison", "search"])
def test_a_file_that_holds_no_study_is_refused_in_one_line(tmp_path, kind, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.json holds no results of"):
        findings.load_findings(**{kind: path})
    with pytest.raises(InputError, match="can't read"):
        findings.load_findings(**{kind: tmp_path / "none.json"})


def test_recorded_studies_of_the_project_can_be_read():
    for kind, name in findings.RECORDED.items():
        assert (ROOT / "studies" / name).is_file()
        found = findings.load_findings()[kind]
        assert found["fresh"] is False
        assert found["rows"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--budget", "3"], "--budget goes with --study"),
        (["--study", "--resume"], "leave --data"),
        (["--report-only", "--diary"], "--report-only makes no study"),
        (["--study", "--budget", "x"], "--budget x: give a number of trials"),
        (["--diary", "none.json"], "can't read none.json"),
        (["--compare", "images.zip"], "holds no results of compare.py"),
    ],
)
def test_studies_that_cannot_be_are_refused_before_any_work(tmp_path, extra, message):
    zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "images.zip")
    args = ["--student-id", "s1", "--data", "images.zip", *[f"--set={text}" for text in TINY], *extra]
    process = run_program(ROOT / "run.py", *args, "--quiet", cwd=tmp_path)
    assert process.returncode == 2
    assert message in process.stderr
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "outputs" / "s1").exists()


def test_a_search_comes_first_its_recipe_is_trained_and_the_report_tells_of_both(tmp_path):
    zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "dataset.zip")
    sets = [f"--set={text}" for text in TINY]
    args = ["--student-id", "s1", *sets, "--study", "--budget", "4", "--no-verify"]
    process = run_program(ROOT / "run.py", *args, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "Studies" in process.stdout
    study = json.loads((tmp_path / "outputs" / "s1-studies" / "search.json").read_text())
    assert len([trial for trial in study["trials"] if trial["state"] != "put back"]) == 4
    record = json.loads((tmp_path / "outputs" / "s1" / "run" / "record.json").read_text())
    changed = study["trials"][study["best"]]["changed"]
    assert record["recipe"]["name"] == ("search" if changed else "default")
    for name, value in changed.items():
        assert record["recipe"]["values"][name] == value
    for text in TINY:  # what was set by hand is not searched
        name, value = parse_setting(text)
        assert record["recipe"]["values"][name] == value
    pdf = PdfReader(tmp_path / "outputs" / "s1" / "s1_Lab8_Homework.pdf")
    text = " ".join(" ".join(page.extract_text() for page in pdf.pages).split())
    assert "Optuna searched" in text
    assert f"{record['findings']['search']['states']['complete']} complete trials" in text

    # New words later, with a diary made meanwhile
    (tmp_path / "d.json").write_text(json.dumps(diary_record(depth=[5, 6, 5, 6])))
    args = ["--student-id", "s1", "--report-only", "--diary", "d.json"]
    process = run_program(ROOT / "run.py", *args, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    again = json.loads((tmp_path / "outputs" / "s1" / "run" / "record.json").read_text())
    assert again["findings"]["diary"]["fresh"] is True
    assert again["findings"]["search"] == record["findings"]["search"]
    assert again["results"] == record["results"]


def test_a_diary_and_a_comparison_can_be_made_within_the_run(tmp_path, monkeypatch):
    source = zip_folder(make_folder(tmp_path / "images", NEU_SIZES), tmp_path / "d.zip")
    calls = []

    def instead(args, say):
        calls.append(args)
        args.output.write_text(json.dumps(copy.deepcopy(texts[args.output.name])))

    scores = {100: (0.99, 0.98), 10: (0.7, 0.71)}
    texts = {
        "diary.json": diary_record(depth=[5, 6, 5, 6]),
        "comparison.json": comparison_record(scores, scores),
    }
    monkeypatch.setattr(tune, "keep_diary", instead)
    monkeypatch.setattr(compare, "compare", instead)
    recipe = Recipe(image_size=32, patch_size=8, dim=16, depth=2, epochs=50, seed=5)
    same, found = findings.make_studies(
        tmp_path / "s", source, recipe, [], budget=None, diary="fresh", comparison="fresh", say=print
    )
    assert same == recipe
    assert found["diary"]["fresh"] is True
    assert found["comparison"]["fresh"] is True
    for args in calls:  # what both would have been about: this run's recipe
        assert load_recipe(args.recipe) == recipe
        assert args.data == str(source)
    assert calls[0].diary == str(ROOT / "studies" / "diary.toml")
    assert calls[1].epochs == 40
    assert calls[1].shares == [100, 50, 25, 10]


def test_two_runs_do_not_write_the_same_studies(tmp_path):
    import filelock

    (tmp_path / "s").mkdir()
    with (
        filelock.FileLock(tmp_path / "s" / "lock"),
        pytest.raises(InputError, match="another run makes studies"),
    ):
        findings.make_studies(
            tmp_path / "s", "d.zip", Recipe(), [], budget="1", diary=None, comparison=None, say=print
        )
