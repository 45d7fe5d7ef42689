"""The report, read back with a PDF reader that is not ours, and the answers' Markdown."""

import copy
import dataclasses
import io
import itertools
import math
import os
import re
import struct
import zlib
from html import unescape

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import drawn
from pypdf import PdfReader

import report
from lab.errors import InputError
from lab.findings import (
    Comparison,
    ComparisonRow,
    Diary,
    DiaryRow,
    DiaryStart,
    Findings,
    Search,
    StudyData,
    StudyMachine,
    Trial,
)
from lab.recipe import Recipe
from lab.record import BlockDistance, ClassScore, EpochRow, Threshold, read_record
from report import answers, figures, fonts, render, source
from report.speech import spoken


@pytest.fixture(scope="module")
def record(bundle):
    return read_record(bundle.run / "record.json")


@pytest.fixture(scope="module")
def pages(bundle):
    """The text of each page, extracted once: that takes seconds."""
    return [flat(page.extract_text()) for page in PdfReader(bundle.pdf).pages]


@pytest.fixture(scope="module")
def text(pages):
    return flat(" ".join(pages))


def flat(text):
    """Text with hyphenation and all kinds of white space evened out."""
    return re.sub(r"\s+", " ", re.sub(r"[\u00ad\u2010]\s*", "", text))


def answer(record, key, folder=None):
    """One answer as HTML."""
    return answers.render_answers(answers.answer_texts(record, folder))[key][1]


def change_recipe(record, **values):
    """A copy of the record as if the run had had other hyperparameters."""
    changed = copy.deepcopy(record)
    changed.recipe.values = dataclasses.replace(changed.recipe.values, **values)
    return changed


def test_the_report_holds_everything_the_assignment_asks_for(text, record):
    results = record.results
    assert "Name Student ID Date Lin Mei <b> 0812345" in text
    assert f"Total params: {record.model.parameters}" in text.replace(",", "")
    assert f"{results.correct} of {results.total} images" in text
    assert f"test loss of {results.loss:.4f}" in text
    assert "Epoch: 6" in text
    assert "Execution time:" in text
    for question in ("6", "7", "8", "9", "10a", "10b", "10c", "10d"):
        assert f"Question {question}." in text
    for heading in ("Confusion matrix", "Example predictions", "References", "Hyperparameters"):
        assert heading in text


def test_each_class_is_scored_as_recorded(text, record):
    for name, scores in record.results.per_class.items():
        row = f"{name} {scores.precision:.3f} {scores.recall:.3f} {scores.f1:.3f} {scores.images}"
        assert row in text


def test_every_example_shows_true_and_predicted_label_and_confidence(text, record):
    assert len(record.shown.examples) == 9  # three test images in each of three classes
    for example in record.shown.examples:
        assert f"true: {example.true} predicted: {example.predicted}" in text
        assert f"confidence {100 * example.confidence:.1f}" in text
    wrong = sum(e.true != e.predicted for e in record.shown.examples) + len(record.shown.mistakes)
    passed = record.results.passed  # the first page marks the verdict in the same way
    assert text.count("✗") == wrong + (not passed)
    assert text.count("✓") == sum(e.true == e.predicted for e in record.shown.examples) + passed


def test_the_log_is_the_one_that_was_printed(text, bundle):
    epochs = (bundle.run / "training.log").read_text().split("Epoch: ")
    for line in f"Epoch: {epochs[1]}Epoch: {epochs[-1]}".splitlines():
        assert flat(line) in text


def test_page_is_a4_with_metadata_and_bookmarks(bundle):
    pdf = PdfReader(bundle.pdf)
    assert all(abs(float(p.mediabox.width) - 595.28) < 1 for p in pdf.pages)
    assert "0812345" in pdf.metadata.title
    assert pdf.metadata.author == "Lin Mei <b>"
    titles = [item.title for item in pdf.outline if not isinstance(item, list)]
    assert any("Model" in title for title in titles)
    assert f"1 of {len(pdf.pages)}" in pdf.pages[0].extract_text()


def test_all_fonts_are_embedded(bundle):
    for page in PdfReader(bundle.pdf).pages:
        for font in page["/Resources"]["/Font"].values():
            for descendant in font.get_object()["/DescendantFonts"]:
                descriptor = descendant.get_object()["/FontDescriptor"].get_object()
                assert {"/FontFile2", "/FontFile3"} & set(descriptor)


def test_attention_distances_stand_in_words_for_those_who_do_not_see_the_figure(bundle, record):
    attention = record.shown.attention
    distance = np.load(bundle.run / "inspection.npz")["distance"]
    assert attention.images == 9
    assert [block.mean for block in attention.blocks] == pytest.approx(distance.mean(axis=1), abs=1e-3)
    said = [alt for alt in alternatives(PdfReader(bundle.pdf)) if "attention distance" in alt]
    assert len(said) == 1
    numbers = [float(n) for n in re.findall(r"\d+\.\d", said[0])]
    of_blocks = [[row.mean(), row.min(), row.max()] for row in distance]
    centres = list(itertools.product(range(4, 32, 8), repeat=2))  # of 4 x 4 patches
    even = np.mean([math.dist(*pair) for pair in itertools.product(centres, repeat=2)])
    assert numbers == pytest.approx([*np.ravel(of_blocks), even], abs=0.051)


@pytest.mark.parametrize(
    ("means", "words"),
    [
        ([6.0, 9.0, 12.0], "grows from 6.0 pixels (19 %) in block 1 to 12.0 (38 %) in block 3;"),
        ([12.0, 9.0, 6.0], "falls from 12.0 pixels (38 %) in block 1 to 6.0 (19 %) in block 3;"),
        (
            [9.0, 14.0, 9.5],
            "is about the same in the first and the last block, 9.0 pixels (28 %) and 9.5 (30 %);",
        ),
        ([9.0], "is 9.0 pixels (28 %) in the only block;"),
    ],
)
def test_the_words_on_attention_distance_follow_the_measurement(record, means, words):
    changed = change_recipe(record, depth=len(means))
    changed.shown.attention.blocks = [BlockDistance(mean=m, least=m - 1, most=m + 1) for m in means]
    changed.shown.attention.even = 10.0
    text = flat(answer(changed, "q10c")).replace(" of the image’s side", "")
    assert words in text
    assert "attending evenly would give 10.0" in text
    assert ("no block’s mean is clearly below that" in text) == (min(means) > 8.4)
    assert f"lie between {means[0] - 1:.1f} and {means[0] + 1:.1f} pixels" in text
    assert "single heads of block 1" not in answer(change_recipe(changed, heads=1), "q10c")


@pytest.mark.parametrize(
    ("pool", "read"),
    [
        ("cls", "the class token"),
        ("mean", "the mean of all tokens"),
        ("max", "the maximum of each feature over all tokens"),
    ],
)
def test_the_report_says_what_the_head_reads(record, bundle, pool, read):
    changed = change_recipe(record, pool=pool)
    page = flat(drawn(changed, bundle))
    assert f"a linear head that reads {read}." in page
    assert f"counts for {read}, which the head reads" in page
    assert f"take {read} and normalise it" in flat(answer(changed, "q10a"))
    assert ("This run pools otherwise" in answer(changed, "q10d")) == (pool != "cls")
    assert ('<li id="ref-maximum">' in page) == (pool == "max")


def test_the_caption_says_where_not_all_blocks_and_heads_are_drawn(record, bundle):
    assert "evenly chosen" not in drawn(record, bundle)
    changed = change_recipe(record, depth=12)
    assert "Shown are 2 of 12 blocks and 2 of 2 heads, evenly chosen." in flat(drawn(changed, bundle))


@pytest.mark.parametrize("demonstration", [False, True])
@pytest.mark.parametrize("correct", [0, 3, 9])
def test_the_words_follow_the_result(record, bundle, correct, demonstration):
    changed = copy.deepcopy(record)
    results = changed.results
    results.correct, results.accuracy, results.passed = correct, correct / 9, correct / 9 >= 0.6
    changed.training.history[-1].test_accuracy = correct / 9
    changed.data.demonstration = demonstration
    html = drawn(changed, bundle)
    assert ("baseline is reached" in html) == (correct == 9)
    assert ("baseline is not reached" in html) == (correct < 9)
    assert ("✗ below the" in html) == (correct < 9)
    assert ("Made from demonstration images" in html) == demonstration
    assert html.count("demonstration images") >= (8 if demonstration else 0)
    assert demonstration or "demonstration images" not in html


@pytest.mark.parametrize(
    ("accuracy", "thresholds", "shown"),
    [
        (0.9, [(0.95, 0.81234), (0.99, None)], ["0.81234 or more at least 95 %", "enough for 99 %"]),
        (0.96, [(0.95, 0.5), (0.99, 0.71)], ["0.71 or more at least 99 %"]),  # all answers are 95 % right
        (1.0, [(0.95, 0.5), (0.99, 0.5)], []),
    ],
)
def test_from_which_confidence_on_answers_can_be_trusted(record, bundle, accuracy, thresholds, shown):
    results = dataclasses.replace(
        record.results, accuracy=accuracy, thresholds=[Threshold(*pair) for pair in thresholds]
    )
    page = flat(drawn(dataclasses.replace(record, results=results), bundle))
    assert page.count("Of the answers with a confidence of") + page.count("No confidence is high") == len(
        shown
    )
    assert all(words in page for words in shown)


def test_drawing_the_report_leaves_the_record_as_it_is(record, bundle):
    before = copy.deepcopy(record)
    drawn(record, bundle)
    assert record == before


def test_rounding_never_makes_a_perfect_score():
    assert answers.percent(0.9999) == "99.9\u202f%"
    assert answers.percent(1.0) == "100.0\u202f%"
    assert answers.percent(0.97222, 2) == "97.22\u202f%"


def epoch(number, accuracy):
    return EpochRow(number, 0.001, 0.01, 1.0, 0.5, 1.0, accuracy, 1.0, 1.0)


def log_of(count, best=None):
    """A training log of so many epochs, and the history that goes with it."""
    text = "".join(f"Epoch: {i}\nline {i}\n" for i in range(1, count + 1)) + "Execution time: 1\n"
    return text, [epoch(i, 0.9 if i == best else i / 1000) for i in range(1, count + 1)]


def test_long_logs_are_folded_to_first_best_and_last_epoch():
    pieces = render.log_pieces(*log_of(50, best=30))
    assert [text for text, _ in pieces if text] == [
        "Epoch: 1\nline 1",
        "Epoch: 30\nline 30",
        "Epoch: 50\nline 50\nExecution time: 1",
    ]
    assert [about for text, about in pieces if not text] == [
        "epochs 2 to 29 left out",
        "epochs 31 to 49 left out",
    ]
    assert "highest test accuracy" in pieces[2][1]
    assert "not selected" in pieces[2][1]


def test_logs_are_folded_right_where_the_best_epoch_is_first_second_or_last():
    for best, parts in ((1, 3), (2, 4), (49, 4), (50, 3)):
        pieces = render.log_pieces(*log_of(50, best))
        assert len(pieces) == parts
        labelled = [text for text, about in pieces if text and "highest" in about]
        assert [text.split("\n")[1] for text in labelled] == [f"line {best}"]
    text, history = log_of(4)
    assert render.log_pieces(text, history) == [(text.strip(), None)]


# A student's own answers


def answered(tmp_path, record, text, name="q06.md"):
    (tmp_path / name).write_bytes(text.encode())
    report.check_answers(tmp_path)
    return {
        key: page for key, (_, page) in answers.render_answers(answers.answer_texts(record, tmp_path)).items()
    }


def test_own_answers_replace_ours_file_by_file(tmp_path, record):
    ours = {key: page for key, (_, page) in answers.render_answers(answers.answer_texts(record)).items()}
    mixed = answered(tmp_path, record, "My *own* words,\r\nwith {{ results.accuracy|percent }}.")
    accuracy = answers.percent(record.results.accuracy)
    assert mixed["q06"] == f"<p>My <em>own</em> words,\nwith {accuracy}.</p>\n"
    assert {k: v for k, v in mixed.items() if k != "q06"} == {k: v for k, v in ours.items() if k != "q06"}


def test_formulas_become_pictures_with_their_words_and_latex_as_text(tmp_path, record):
    html = answered(tmp_path, record, "Inline $x^2$ and\n\n$$\n\\frac{a}{b}\n$$ (7)\n")["q06"]
    assert re.findall(r'alt="([^"]+)"', html) == ["x squared", "fraction a over b end fraction"]
    assert re.findall(r'data-latex="([^"]+)"', html) == ["x^2", r"\frac{a}{b}"]
    assert "(7)</span>" in html
    assert html.count("data:image/svg+xml") == 2


def test_listings_are_the_lines_of_the_submitted_program_that_they_cite(record, bundle):
    program = bundle.code.read_text(encoding="utf-8").splitlines()
    steps = [re.match(r"# =+ Step (\d+)", line) for line in program]
    found = re.findall(
        r"<figcaption>0812345_Lab8_Homework\.py, step (\d+), lines? (\d+)(?:–(\d+))?</figcaption>"
        r"<pre>(.*?)</pre>",
        drawn(record, bundle),
        re.DOTALL,
    )
    assert len(found) == 5
    for step, first, last, text in found:
        shown = unescape(re.sub(r"<[^>]*>", "", text)).splitlines()
        cited = program[int(first) - 1 : int(last or first)]
        assert [line.strip() for line in shown] == [line.strip() for line in cited]
        assert step == [match[1] for match in steps[: int(first)] if match][-1]


def test_a_listing_has_neither_the_docstring_nor_what_was_left_out():
    program = '# Step 2: b\nclass A:\n    def f(self):\n        """Doc."""\n        x = 1\n        return x\n'
    assert source.excerpt(program, "A.f") == ("def f(self):\n    x = 1\n    return x", 3, 6)
    assert source.excerpt(program, "A.f", "x = 1", "return") == ("x = 1\nreturn x", 5, 6)
    assert (source.step_of(program, 3), source.step_of("x = 1", 1)) == ("2", None)
    for name, start in (("A.g", None), ("B", None), ("A.f", "y = 1")):
        with pytest.raises(LookupError):
            source.excerpt(program, name, start)


def test_html_and_scripts_in_answers_stay_text(tmp_path, record):
    html = answered(tmp_path, record, "<script>alert(1)</script> [x](javascript:alert(1))")["q06"]
    assert "<script" not in html
    assert "href" not in html


def test_class_names_are_shown_letter_by_letter(record):
    changed = copy.deepcopy(record)
    odd = "*a*<b>$x$_{{ 1 }}"
    changed.data.classes[0] = odd
    results = changed.results
    results.confusion_matrix = [[2, 1, 0], [0, 3, 0], [0, 0, 3]]
    results.per_class = {name: ClassScore(1.0, 1.0, 1.0, 3) for name in changed.data.classes}
    html = answer(changed, "q09")
    assert "*a*&lt;b&gt;$x$_{{ 1 }}" in html


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n{{ results.accuracy", r"q06\.md, line 2: "),
        ("{{ resluts.accuracy }}", r"q06\.md: \{\{ resluts \}\} cannot be looked up"),
        ("$\\frac{a$", r"q06\.md: cannot set the formula '\\\\frac\{a'"),
        ("{{ results.acuracy }}", r"q06\.md.*acuracy"),
        ("{{ code('ViT.backward') }}", r"q06\.md.*no ViT\.backward"),
        ("{{ ''.__class__.__mro__ }}", r"q06\.md.*unsafe"),
    ],
)
def test_faults_in_answers_name_file_and_place(tmp_path, record, text, message):
    with pytest.raises(InputError, match=message):
        answered(tmp_path, record, text)


def test_answers_that_fit_no_question_are_refused(tmp_path, record):
    with pytest.raises(InputError, match=r"q6\.md: no question has this name"):
        answered(tmp_path, record, "hello", "q6.md")
    (tmp_path / "q6.md").unlink()
    (tmp_path / "q07.md").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"q07\.md is not UTF-8"):
        report.check_answers(tmp_path)


def test_pictures_in_answers_come_from_their_own_folder_only(tmp_path, record, bundle):
    folder = tmp_path / "answers"
    folder.mkdir()
    picture = (bundle.run / record.shown.examples[0].picture).read_bytes()
    (tmp_path / "secret.jpg").write_bytes(picture)
    (folder / "in side.jpg").write_bytes(picture)
    html = answered(folder, record, "![a stripe](<in side.jpg>)")["q06"]
    assert 'alt="a stripe" src="data:image/jpeg;base64,' in html
    for text, message in {
        "![a](../secret.jpg)": r"q06\.md: cannot show the picture \.\./secret\.jpg",
        "![a](http://127.0.0.1:9/x.png)": "cannot show the picture http",
        "![a](/etc/passwd)": "cannot show",
        "![](<in side.jpg>)": "needs a description",
    }.items():
        with pytest.raises(InputError, match=message):
            answered(folder, record, text)


def png_that_claims(width, height):
    """The bytes of a small PNG file whose header says that it is large."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.png", b"no picture", "damaged or not a picture"),
        ("a.jpg", b"", "damaged or not a picture"),
        ("a.png", png_that_claims(60000, 60000), "(DecompressionBombError)"),
        ("a.png", png_that_claims(9000, 9000), "9000 x 9000 pixels are too many: make it smaller"),
        ("a.gif", bytes(20_600_000), "it has 21 MB, at most 20 are allowed"),
        ("a.svg", b"<svg", "put a .png, .jpg, .jpeg, .gif file into"),  # a drawing may take in other files
    ],
)
def test_pictures_that_are_broken_huge_or_refer_to_others_are_refused(tmp_path, name, content, fault):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "q06.md").write_text(f"![a]({name})")
    with pytest.raises(
        InputError, match=rf"q06\.md: cannot show the picture {name}: .*{re.escape(fault)}"
    ) as said:
        report.check_answers(tmp_path)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("![a](file:///etc/passwd)", "cannot show the picture file:///etc/passwd"),
        ("[a](FILE:///etc/passwd)", "FILE:///etc/passwd is a file of this machine"),
        ("[a]({{ 'file:///etc/passwd' }})", "file:///etc/passwd is a file of this machine"),
        ("![a]({{ 'http://127.0.0.1:9/x.png' }})", "cannot show the picture http://127.0.0.1:9/x.png"),
        ("![a][r]\n\n[r]: http://127.0.0.1:9/x.png", "cannot show the picture http://127.0.0.1:9/x.png"),
        ("![a](x%00.png)", r"cannot show the picture x\?\.png"),
        (f"![a]({'x' * 5000}.png)", r"cannot show the picture x{77}\.\.\.:"),
        ("{% include '/etc/passwd' %}", "cannot take in other files"),
        ("{% include classes[0] %}", "cannot take in other files"),
    ],
)
def test_answers_take_in_nothing_from_elsewhere(tmp_path, record, text, message):
    with pytest.raises(InputError, match=message):
        answered(tmp_path, record, text)


def test_an_answer_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "q06.md")
    with pytest.raises(InputError, match=r"q06\.md is not a file"):
        report.check_answers(tmp_path)


def test_weasyprint_may_read_nothing_but_the_page():
    fetcher = render._fetcher()
    for url in ("file:///etc/passwd", "http://127.0.0.1:9/x.png"):
        with pytest.raises(ValueError, match="disallowed protocol"):
            fetcher.fetch(url)


# Studies: recorded ones as recorded, own ones as measured, no noise as a result

ABOUT = {
    "data": StudyData(fingerprint="a", name="steel.zip"),
    "machine": StudyMachine(processor="AMD EPYC", cores=2),
    "date": "2026-01-04T10:00:00+00:00",
}


SCORED = {"runs": 4, "failed": 0, "accuracy": 0.9, "sd": 0.01, "seconds": 9.0}


def ahead_by(difference, low, high):
    return {"difference": difference, "low": low, "high": high, "within_noise": low <= 0 <= high}


def diary_of(*effects, **more):
    """A diary of rows (name, value, difference, low, high), in shares."""
    rows = [DiaryRow(name=name, value=value, **ahead_by(*ahead), **SCORED) for name, value, *ahead in effects]
    recipe = dataclasses.asdict(Recipe()) | {"epochs": 15}
    start = DiaryStart(images=100, **SCORED | {"accuracy": 0.94})
    return Diary(name="default", recipe=recipe, folds=4, start=start, rows=rows, **ABOUT, **more)


def comparison_of(*differences, **more):
    """A comparison of the ViT with a CNN: (training images, difference, low, high) for each share."""
    rows = []
    size = {"parameters": 40_000, "mult_adds": 2_000_000, "inference_rate": 900.0}
    for share, (images, *ahead) in zip((100, 10), differences):
        for model, pairs in (("vit", 0), ("cnn", 3)):
            about = {"model": model, "share": share, "equal": "steps", "train_images": images, "pairs": pairs}
            compared = ahead_by(*ahead) if pairs else dict.fromkeys(ahead_by(*ahead))
            rows.append(ComparisonRow(**about, **size, **SCORED, **compared))
    recipe = dataclasses.asdict(Recipe()) | {"epochs": 15}
    return Comparison(recipe=recipe, tuned={}, rows=rows, **ABOUT, **more)


def with_studies(record, **studies):
    changed = copy.deepcopy(record)
    changed.findings = Findings(**studies)
    return changed


def written(record, key):
    """An answer's Markdown, without its escapes and line breaks."""
    text = answers.answer_texts(record)[key][1]
    return " ".join(text.replace("\\", "").replace("\u202f", " ").split())


def test_a_study_is_shown_as_recorded_with_date_machine_and_data(record):
    recorded = with_studies(record, diary=diary_of(("depth", 9, 0.01, -0.02, 0.04), file="d.json"))
    text = written(recorded, "q07")
    assert "recorded on other images (steel.zip), not measured in this run" in text
    assert "2026-01-04, AMD EPYC, 2 cores; study/recorded/d.json" in text
    assert "with 15 epochs" in text
    recorded.data.fingerprint = "a"
    assert "recorded on this run’s images, not measured in this run" in written(recorded, "q07")
    own = with_studies(record, diary=diary_of(("depth", 9, 0.01, -0.02, 0.04), fresh=True))
    own.data.fingerprint = "a"
    text = written(own, "q07")
    assert "measured on this run’s images for this report" in text
    assert "not measured in this run" not in text


def test_question_7_calls_noise_noise_and_names_what_is_beyond_it(record):
    effects = [
        ("depth", 9, 0.0, -0.02, 0.02),
        ("mlp_dim", 9, -0.2, -0.21, -0.19),
        ("heads", 9, 0.035, 0.01, 0.06),
        ("pos_embedding", False, -0.004, -0.03, 0.02),
    ]
    changed = with_studies(record, diary=diary_of(*effects))
    lines = answers.answer_texts(changed)["q07"][1].replace("\\", "").splitlines()
    rows = [line.split("|") for line in lines if line[:2] == "| "]
    table = {row[1].strip(): row[5].strip() for row in rows}
    assert table["Encoder blocks"] == "3 → 9: 0.0 n.s."
    assert table["MLP width"] == "256 → 9: −20.0"
    assert table["Heads"] == "4 → 9: +3.5"
    assert table["Image size, pixels"] == ""
    text = written(changed, "q07")
    assert "The largest losses: MLP width 9: −20.0 (−21.0 to −19.0)." in text
    assert "Better than the recipe in this schedule: heads 9: +3.5 (+1.0 to +6.0)." in text
    assert "Of 4 changes 2 are within noise" in text
    assert "changes by −0.4 points (95 % interval −3.0 to +2.0), which is within noise" in written(
        changed, "q06"
    )


def test_the_diary_names_what_this_run_does_otherwise(record):
    text = written(with_studies(record, diary=diary_of(("depth", 9, 0.0, -0.1, 0.1))), "q07")
    differs = text.split("differs from the diary’s recipe in ")[1].split(".")[0].split(", ")
    values, default = record.recipe.values.as_dict(), Recipe(epochs=15).as_dict()
    own = {"warmup_epochs", "split_seed", "seed"}
    assert set(differs) == {n for n in values if values[n] != default[n]} - own
    assert {"dim", "epochs"} <= set(differs)


def test_what_an_older_diary_does_not_know_counts_as_it_was_then(record):
    """The diary of a version without the mimetic start is not about a model that has it."""
    diary = diary_of(("depth", 9, 0.0, -0.1, 0.1))
    old = {name: value for name, value in diary.recipe.items() if name != "mimetic"}
    changed = with_studies(record, diary=dataclasses.replace(diary, recipe=old))
    changed.recipe = dataclasses.replace(
        changed.recipe, values=dataclasses.replace(record.recipe.values, mimetic=True)
    )
    text = written(changed, "q07")
    assert "mimetic" in text.split("differs from the diary’s recipe in ")[1].split(".")[0].split(", ")


def test_an_end_of_an_interval_is_never_rounded_to_zero():
    points = answers.points
    assert points(-0.000195) == "−0.02" and points(0.0) == "0.0" and points(-0.0312) == "−3.1"


def test_one_run_is_not_said_to_be_within_noise(record):
    comparison = comparison_of((1000, 0.04, -0.1, 0.1))
    rows = [
        dataclasses.replace(row, pairs=1, low=None, high=None) if row.pairs else row
        for row in comparison.rows
    ]
    text = written(with_studies(record, comparison=dataclasses.replace(comparison, rows=rows)), "q08")
    assert "+4.00 (one run, no interval)" in text
    assert "one run each cannot tell the two apart" in text and "within noise" not in text


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        ((0.03, 0.01, 0.05), "the ViT is ahead beyond noise with 1,000 images at equal steps"),
        ((-0.03, -0.05, -0.01), "the CNN is ahead beyond noise with 1,000 images at equal steps"),
        ((0.01, -0.02, 0.04), "no interval excludes zero, and the means are at most 1.00 points apart"),
    ],
)
def test_question_8_says_who_is_ahead_only_beyond_noise(record, difference, words):
    comparison = comparison_of((1000, *difference), (100, 0.0, -0.01, 0.01), file="c.json")
    text = written(with_studies(record, comparison=comparison), "q08")
    assert words in text
    assert ("ahead beyond noise" in text) is ("ahead beyond noise" in words)
    assert ("cannot be told apart" in text) is ("no interval" in words)
    assert "not measured in this run" in text


def test_question_8_tells_what_carries_over_to_other_images(record):
    here, there = comparison_of((1000, 0.01, -0.02, 0.04)), comparison_of((700, -0.02, -0.03, -0.01))
    there = dataclasses.replace(there, data=StudyData("b", "x-tiles.zip", []), file="x.json")
    text = written(with_studies(record, comparison=here, elsewhere=there), "q08")
    assert "| x‑tiles | CNN | steps | 700 |" in text
    assert "**On other data**, x-tiles (" in text
    assert "−2.00 (−3.00 to −1.00) with 700 training images at equal steps, the CNN is ahead" in text
    assert "On other data" not in written(with_studies(record, comparison=here), "q08")
    full = dataclasses.replace(there, recipe={**there.recipe, "epochs": 16, "repeats": 3})
    text = written(with_studies(record, comparison=here, longer=full), "q08")
    assert "**At the full length** of the default recipe, 48 times each image, on x-tiles (" in text
    assert "ViT minus CNN −2.00 (−3.00 to −1.00), beyond noise." in text


def test_question_8_sets_a_larger_network_apart(record):
    comparison = comparison_of((1000, 0.01, -0.02, 0.04))
    vit, cnn = comparison.rows
    large = dataclasses.replace(cnn, model="resnet18", parameters=480_000, mult_adds=30_000_000)
    rows = [
        vit,
        cnn,
        large,
        dataclasses.replace(large, equal="time", low=0.005, within_noise=False, epochs=1.0),
    ]
    text = written(with_studies(record, comparison=dataclasses.replace(comparison, rows=rows)), "q08")
    assert "with 12 times the ViT’s parameters and 15 times its multiply-adds. At equal time" in text
    assert "it has 1 epoch where the ViT has 15" in text
    both = [f"+1.00 ({low} to +4.00) with 1,000 training images at equal" for low in ("−2.00", "+0.50")]
    assert f"{both[0]} steps, within noise; {both[1]} time." in text
    assert "Beside ResNet-18" not in written(with_studies(record, comparison=comparison), "q08")


def trial(number, changed, accuracy, loss):
    how = {"state": "complete", "base": not changed, "again": None, "seconds": 5.0, "failure": None}
    return Trial(number, changed=changed, accuracy=accuracy, loss=loss, epochs=15, precision="fp32", **how)


def test_question_7_tells_of_a_search(record):
    search = Search(
        recipe=Recipe(epochs=15), searched=["depth", "dim"], folds=1, seconds=60.0,
        states={"complete": 12, "pruned": 5, "failed": 1}, importances={"depth": 0.7, "dim": 0.3}, fresh=True,
        base=trial(0, {}, 0.9, 0.3), best=trial(7, {"depth": 9}, 0.95, 0.2), **ABOUT,
    )  # fmt: skip
    text = written(with_studies(record, search=search), "q07")
    assert "Optuna searched 2 hyperparameters together (measured on other images (steel.zip)" in text
    assert "12 complete trials, 5 stopped early, 1 failed, each of at most 15 epochs" in text
    assert "had 90.00 %, the best trial 95.00 %, with depth 9" in text
    assert "depth 70 %, dim 30 %" in text


def test_without_any_study_the_answers_claim_none(record, bundle):
    changed = with_studies(record)
    text = " ".join(written(changed, key) for key, *_ in answers.QUESTIONS)
    assert "diary" not in text
    assert "Optuna" not in text
    assert "no difference between the two" in text
    page = drawn(changed, bundle)
    assert 'id="diary"' not in page
    assert 'id="shares"' not in page


def test_figures_of_studies_have_captions_links_and_all_numbers_in_words(record, bundle):
    diary = diary_of(("depth", 9, 0.0, -0.02, 0.02), ("mlp_dim", 9, -0.2, -0.213, -0.187), file="d.json")
    comparison = comparison_of((1000, 0.0, -0.01, 0.01), (100, 0.0, -0.01, 0.01), file="c.json")
    page = drawn(with_studies(record, diary=diary, comparison=comparison), bundle)
    for name, words, caption in (
        ("diary", "MLP width 9: −20.0 (−21.3 to −18.7)", "validation accuracy of 94.0 % that"),
        (
            "shares",
            "CNN, equal steps, 100 images: 90.0",
            "standard deviation over seeds, 15 epochs. Recorded on other",
        ),
    ):
        figure = page.split(f'<figure class="plot" id="{name}">')[1].split("</figure>")[0]
        assert words in figure.split('alt="')[1].split('"')[0]
        shown = flat(figure.split("<figcaption>")[1])
        assert caption in shown
        assert "AMD EPYC" in shown
        assert f'<a href="#{name}">Figure ' in page


# Missing system libraries


@pytest.mark.parametrize(
    ("system", "command"),
    [
        ("Linux", "apt-get install -y libpango"),
        ("Linux", "dnf install -y pango"),
        ("Darwin", "brew install pango"),
        ("Windows", "mingw-w64-ucrt-x86_64-pango"),
        ("Plan9", "install Pango"),
    ],
)
def test_missing_libraries_come_with_the_command_that_installs_them(monkeypatch, system, command):
    import builtins

    real = builtins.__import__

    def without_pango(name, *args, **kwargs):
        if name == "weasyprint":
            print("a banner")
            raise OSError("cannot load library 'libpango-1.0-0': no such file. Additionally, ...")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pango)
    monkeypatch.setattr(render.platform, "system", lambda: system)
    with pytest.raises(InputError, match=rf"system library \(libpango-1\.0-0\): .*{command}") as caught:
        report.check_renderer()
    assert "\n" not in str(caught.value)


# The PDF as a document: tags, text that can be copied, the same bytes


def elements(pdf):
    """All elements of the structure tree, in reading order."""

    def walk(node):
        node = node.get_object() if hasattr(node, "get_object") else node
        if isinstance(node, list):
            for kid in node:
                yield from walk(kid)
        elif isinstance(node, dict):
            if "/S" in node:
                yield node
            yield from walk(node.get("/K"))

    return list(walk(pdf.trailer["/Root"]["/StructTreeRoot"]))


def alternatives(pdf):
    """What stands in the place of each figure and formula."""
    return [tag["/Alt"] for tag in elements(pdf) if tag["/S"] == "/Figure"]


def test_the_pdf_is_tagged_for_screen_readers(bundle, record):
    pdf = PdfReader(bundle.pdf)
    root = pdf.trailer["/Root"]
    assert root["/Lang"] == "en"
    assert root["/MarkInfo"]["/Marked"]
    assert root["/ViewerPreferences"]["/DisplayDocTitle"]
    assert 'pdfuaid:part="1"' in root["/Metadata"].get_object().get_data().decode()
    tags = elements(pdf)
    figures = alternatives(pdf)
    assert all(figures)
    assert sum("Confusion matrix of 9 test images" in alt for alt in figures) == 1
    assert sum("Attention rollout" in alt for alt in figures) == 1
    assert sum("Attention maps of 2 blocks times 2 heads" in alt for alt in figures) == 1
    assert any("softmax open parenthesis" in alt for alt in figures)
    levels = [int(tag["/S"][2:]) for tag in tags if re.fullmatch(r"/H[1-6]", tag["/S"])]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    headers = {tag["/ID"] for tag in tags if tag["/S"] == "/TH"}
    cells = [tag["/A"]["/Headers"] for tag in tags if tag["/S"] == "/TD"]
    assert len(cells) > 50
    assert all(cell and set(cell) <= headers for cell in cells)
    links = [a.get_object() for page in pdf.pages for a in page.get("/Annots", [])]
    assert len(links) > 50
    assert all(link["/Contents"] for link in links)
    assert set(pdf.metadata) >= {"/Title", "/Author", "/Subject", "/Keywords", "/CreationDate"}


def test_code_copied_out_of_the_pdf_runs(bundle, pages):
    import torch
    from einops import einsum, rearrange

    # This reader widens gaps between words but keeps the indentation.
    lines = [
        line
        for page, text in zip(PdfReader(bundle.pdf).pages, pages)
        if "softmax" in text and "def forward(self, x):" in text  # this extraction is slow
        for line in page.extract_text(extraction_mode="layout").splitlines()
    ]
    start = next(i for i, line in enumerate(lines) if re.match(r"\s*def\s+forward\(self,\s+x\):", line))
    end = next(i for i in range(start, len(lines)) if "return" in lines[i])
    margin = len(lines[start]) - len(lines[start].lstrip())
    code = "\n".join(line[margin:] for line in lines[start : end + 1])
    names = {"einsum": einsum, "rearrange": rearrange}
    exec(code, names)

    from vit import Attention

    attention, x = Attention(dim=8, heads=2, dim_head=4).eval(), torch.randn(1, 5, 8)
    assert torch.equal(names["forward"](attention, x), attention(x))


def test_the_same_record_gives_the_same_bytes(record, bundle, monkeypatch):
    pdf, page = report.render_report(record, bundle.run)
    assert pdf == bundle.pdf.read_bytes()
    assert page == (bundle.run / "report.html").read_text(encoding="utf-8")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert render.document_date(record) == "2023-11-14T22:13:20+00:00"


def test_chinese_names_stand_in_the_pdf_as_text_and_nothing_warns(record, bundle, caplog, recwarn):
    changed = copy.deepcopy(record)
    changed.student.name = "陳美玲 Lin ✓ خدوش ×"
    pdf = PdfReader(io.BytesIO(report.render_report(changed, bundle.run)[0]))
    assert "陳美玲" in pdf.pages[0].extract_text()
    assert pdf.metadata.author == changed.student.name
    used = {
        str(font.get_object()["/BaseFont"])
        for page in pdf.pages
        for font in page["/Resources"]["/Font"].values()
    }
    assert any("CJK" in name for name in used), used
    assert [entry.getMessage() for entry in caplog.records if entry.levelname != "DEBUG"] == []
    assert [str(w.message) for w in recwarn if "ziamath" not in str(w.filename)] == []


def test_the_report_is_small(bundle):
    assert bundle.pdf.stat().st_size < 3e6


# Numbers and references


def test_figures_tables_and_sections_are_numbered_in_order_and_linked(bundle):
    page = (bundle.run / "report.html").read_text(encoding="utf-8")
    for kind, least in (("Figure", 10), ("Table", 2)):
        numbers = re.findall(rf'<b class="label">{kind} (\d+)\.</b>', page)
        assert numbers == [str(i + 1) for i in range(len(numbers))]
        assert len(numbers) >= least
    ids = re.findall(r' id="([\w-]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'<a [^>]*href="#([\w-]+)"', page)) <= set(ids)
    referable = set(re.findall(r'<(?:h2|figure|table|li) id="([\w-]+)"', page))
    assert referable <= {*answers._targets(), *render.QUESTION_NAMES}  # what an answer can refer to
    assert 'href="#eq-1">equation 1</a>' in page
    assert 'href="#ref-vit">[1]</a>' in page


def test_a_reference_to_nothing_is_refused_and_a_lost_equation_becomes_text():
    page = '<b data-label="Figure b"></b><a href="#b"></a><a href="#eq-4"></a>'
    numbered = render.number(page, {})
    assert numbered == '<b class="label">Figure 1.</b><a href="#b">Figure 1</a>equation 4'
    with pytest.raises(InputError, match="refers to #c; there are #b"):
        render.number(page + '<a href="#c"></a>', {})


def test_every_rubric_point_names_its_page(pages):
    for row, sign in {
        "Question 6": "Question 6. Briefly",
        "Question 7": "Question 7. Describe",
        "Question 9": "Question 9. Report",
        "Question 10d": "Question 10d. How",
    }.items():
        number = int(re.findall(rf"{row} (\d+)\b", pages[0])[-1])
        assert sign in pages[number - 1]


def test_every_hyperparameter_of_the_record_is_listed(record):
    values = record.recipe.values.as_dict()
    columns = render.setting_columns(values)
    listed = {name: value for column in columns for _, rows in column for name, value in rows}
    assert list(sorted(listed)) == sorted(values)
    assert listed["transpose"] == "no"
    headings = [heading for column in columns for heading, _ in column]
    assert {"Model", "Images", "Optimisation"} == set(headings)


# Letters of all scripts


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("陳美玲 龜裂", fonts.CJK),  # traditional
        ("轧制氧化皮", fonts.CJK),  # simplified
        ("ひび割れ カタカナ", fonts.CJK),
        ("균열", fonts.CJK),
        ("царапины", "STIX Two Text Cyrillic"),
        ("خدوش", fonts.ARABIC),
        ("Nguyễn Thị", "STIX Two Text Vietnamese"),
        ("Łukasz Škoda", "STIX Two Text Extended"),
    ],
)
def test_letters_of_many_scripts_have_a_font_of_ours(text, family):
    chosen, missing = fonts.choose_families(text)
    assert family in [name for name, _ in chosen]
    assert missing == set()
    assert f'font-family: "{family}"' in fonts.font_css(text)


def test_words_are_broken_with_a_hyphen_that_fits_whatever_other_script_is_there():
    css = fonts.font_css("خدوش")
    families = re.search("--text: ([^;]+);", css)[1]
    assert families.index("STIX Two Math") < families.index(fonts.ARABIC)


def test_letters_that_no_font_has_are_named():
    assert fonts.missing_letters("Lin 美 \U00013000\U00012000") == "\U00012000\U00013000"


# Formulas in words


@pytest.mark.parametrize(
    ("latex", "words"),
    [
        (r"\frac{a}{b^2}", "fraction a over b squared end fraction"),
        (r"\mathbf{E}_{pos}", "bold E sub pos"),
        (r"\mathrm{softmax}(x)", "softmax open parenthesis x close parenthesis"),
        (r"\sqrt{D_h}", "square root of D sub h end root"),
        (r"k^\top", "k transpose"),
        (r"\alpha \in \mathbb{R}^n", "alpha in blackboard R superscript n"),
        (r"N = HW/P^2", "N equals H W over P squared"),
    ],
)
def test_formulas_are_spoken(latex, words):
    assert spoken(latex) == words


# Figures


NAMES = ["crazing", "夾雜物_non-metallic_inclusion_type_B", "$x$", "scratches_longitudinal_from_the_mill"]


def check_letters(figure):
    """All of a figure fits the text width of a page, and no letter is cut or smaller than 7 points."""
    width, height = figure.get_size_inches()
    assert width <= figures.WIDTH
    assert height <= 9.3
    figure.canvas.draw()  # lays it out
    drawn = figure.get_tightbbox()  # of all that is drawn, inches
    assert (drawn.min >= -0.01).all(), drawn
    assert (drawn.max <= np.array([width, height]) + 0.01).all(), drawn
    assert all(t.get_fontsize() >= 7 for t in figure.findobj(plt.Text) if t.get_text() and t.get_visible())
    plt.close(figure)


@pytest.mark.parametrize("count", [2, 3, 12, 40])
def test_figures_of_any_number_of_classes_keep_their_letters_inside_and_at_least_7_points(count):
    names = [f"{NAMES[i % 4]}{i}" for i in range(count)]
    matrix = np.diag([30] * count)
    matrix[0, -1] = 12
    figures.use_report_type("".join(names))
    drawn = [
        figures.draw_confusion_matrix(matrix, names),
        figures.draw_counts({side: dict.fromkeys(names, 20) for side in ("train", "test")}),
    ]
    for figure in drawn:
        check_letters(figure)


@pytest.mark.parametrize(
    ("depth", "heads", "grid"), [(1, 1, 1), (2, 2, 4), (6, 4, 10), (6, 8, 7), (8, 8, 14), (2, 8, 64)]
)
def test_attention_of_small_and_large_models_can_be_read(depth, heads, grid):
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.full(grid**2, 0.05), size=(depth, heads)).reshape(depth, heads, grid, grid)
    picture = np.zeros((40, 40, 1), np.uint8)
    figures.use_report_type()
    # As of a model with 24 blocks and 16 heads, where so many are chosen.
    check_letters(figures.draw_heads(picture, maps, 3 * np.arange(depth), 2 * np.arange(heads)))
    check_letters(figures.draw_distance(rng.uniform(0, 130, (3 * depth, 2 * heads)), 104.0))
    check_letters(figures.draw_distance(np.zeros((depth, heads)), 0.0))


def test_the_page_for_the_screen_needs_no_other_file(bundle):
    page = (bundle.run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert not re.search(r"url\((?!\"data:)", page)
    assert "prefers-color-scheme: dark" in page
    assert "<script" not in page
