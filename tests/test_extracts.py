"""What the report shows of many things: classes, files, notes; and what stands beside an accuracy."""

import copy
import io
import re

import conftest
import pytest
from pypdf import PdfReader

import report
from lab.record import (
    Choices,
    ClassScore,
    KeptTogether,
    LeftOut,
    Prediction,
    Unreadable,
    read_record,
)
from report import extracts, figures


@pytest.fixture(scope="module")
def record(bundle):
    return read_record(bundle.run / "record.json")


def drawn(record, bundle):
    return re.sub(r"\s+", " ", conftest.drawn(record, bundle).replace("\u202f", " "))


def judged(record, correct, low, share):
    """A copy of the record with this many right, the interval's lower end, and the largest class's share."""
    changed = copy.deepcopy(record)
    results = changed.results
    results.correct, results.accuracy = correct, correct / results.total
    results.interval, results.largest_share, results.largest_class = (low, 0.99), share, "a *long* <name>"
    results.balanced_accuracy, results.macro_f1 = 0.3333, 0.2512
    return changed


def test_beside_the_accuracy_stand_the_largest_class_and_two_means(record, bundle):
    html = drawn(judged(record, 8, 0.7, 0.4), bundle)
    first_page, rest = html.split("Where each graded point", 1)
    words = "largest class 40.0 %, balanced accuracy 33.3 %, macro-F1 0.251"
    assert words in first_page and words in rest.split("<article>")[0]
    answer = html[html.index('id="q09"') :]
    assert "a *long* &lt;name&gt;, would reach 40.0 %" in answer
    assert "is 33.3 % and the macro-F1 0.251" in answer
    assert "not shown to be better than always" not in html


@pytest.mark.parametrize(("correct", "low", "share"), [(6, 0.35, 0.6), (3, 0.1, 0.6), (6, 0.6, 0.6)])
def test_an_accuracy_no_better_than_the_largest_class_is_called_so(record, bundle, correct, low, share):
    changed = judged(record, correct, low, share)
    html = drawn(changed, bundle)
    assert html.count("not shown to be better than always answering “a *long* &lt;name&gt;”") == 2
    assert "not shown to be better than always answering that class" in html
    assert ("as its interval includes that share" in html) is (correct / 9 > share)
    assert "NOT shown to be better than always answering 'a *long* <name>'" in changed.results.beside()


def test_the_console_says_it_in_the_line_of_the_accuracy(bundle):
    results = bundle.record.results
    said = bundle.process.stdout.splitlines()
    lines = [line for line in said if re.match(" +test loss|Test accuracy", line)]
    assert len(lines) == 2 and all(results.beside() in line for line in lines)
    assert f"largest class {1 / 3:.2%}, balanced accuracy " in results.beside()


def test_every_kind_of_file_not_used_is_counted_with_an_example(record, bundle):
    changed = copy.deepcopy(record)
    data = changed.data
    assert "table-files" not in drawn(changed, bundle)  # nothing where there is nothing
    data.left_out = [LeftOut("not an image", 1234, "<b>notes</b>.txt")]
    data.unreadable = [Unreadable("a/1.png", "cut off"), Unreadable("a/2.png", "cut off")]
    data.kept_together = [KeptTogether("same picture, turned", 1, 3, "a/3.png and a/4.png")]
    data.contradictions = [f"a/{'x' * 300}.png and b/7.png", "a/8.png and b/9.png"]
    data.sizes, data.modes = [("9 x 9", 2000), ("8 x 8", 2)], [("L", 2001), ("RGB", 1)]
    data.notes, data.presented = ["Folders were taken as <classes>."], "grey, 32 x 32 pixels"
    data.choices, data.pixel_range = Choices(labels="labels.csv"), (0.0, 4095.0)
    rows, left_away = extracts.file_facts(data)
    assert [row[:2] for row in rows] == [
        ("not used: not an image", "1,234"),
        ("unreadable: cut off", "2"),
        ("kept on one side: same picture, turned", "3 in 1 group"),
        ("equal pictures of different classes", "2"),
    ]
    assert left_away == 0 and max(len(name) for *_, name in rows) <= extracts.NAME
    html = drawn(changed, bundle)
    for words in (
        "&lt;b&gt;notes&lt;/b&gt;.txt", "a/1.png", "a/3.png and a/4.png", "Folders were taken as &lt;classes",
        "9 × 9 (2,000), 8 × 8 (2)", "L (2,001), RGB (1)", "The model is shown: grey, 32 × 32 pixels.",
        "Chosen by the user: --labels labels.csv.",
    ):  # fmt: skip
        assert words in html, words


def test_many_kinds_of_files_and_notes_are_cut_and_counted(record, bundle):
    changed = copy.deepcopy(record)
    changed.data.left_out = [LeftOut(f"reason {i}", i, "x") for i in range(30)]
    changed.data.notes = [f"Note {i}." for i in range(30)]
    html = drawn(changed, bundle)
    assert "reason 10<" in html and "reason 11<" not in html and "19 more kinds" in html
    assert "Note 7." in html and "Note 8." not in html and "22 more in run/record.json" in html


def with_classes(record, count):
    """A copy of the record with so many classes of three test images, two of them right."""
    changed = copy.deepcopy(record)
    names = [f"{'kind' * 30} {i:03}" for i in range(count)]
    changed.data.classes = names
    changed.data.counts = {"train": dict.fromkeys(names, 7), "test": dict.fromkeys(names, 3)}
    results, shown = changed.results, changed.shown
    results.total, results.correct, results.largest_class = 3 * count, 2 * count, names[0]
    results.confusion_matrix = [
        [2 if j == i else int(j == (i + 1) % count) for j in range(count)] for i in range(count)
    ]
    results.per_class = {name: ClassScore(0.5, 2 / 3, 0.6 + i / 1e4, 3) for i, name in enumerate(names)}
    results.predictions = [
        Prediction(f"{a}/{n}.png", a, b, [1 / count] * count)
        for a, wrong in zip(names, names[1:] + names[:1])
        for n, b in enumerate((a, a, wrong))
    ]
    one, sample = shown.examples[0], shown.train_samples[0]
    make = lambda kind, **more: type(kind)(**(vars(kind) | more))  # noqa: E731
    shown.examples = [make(one, true=p.true, predicted=p.predicted) for p in results.predictions]
    shown.mistakes = [e for e in shown.examples if e.true != e.predicted][:8]
    shown.train_samples = shown.test_samples = [make(sample, true=name) for name in names for _ in "ab"]
    return changed


def test_300_classes_fit_on_few_pages(record, bundle):
    changed = with_classes(record, 300)
    content, page = report.render_report(changed, bundle.run)
    pdf = PdfReader(io.BytesIO(content))
    assert len(pdf.pages) <= 26
    text = re.sub(r"\s+", " ", " ".join(part.extract_text() for part in pdf.pages))
    assert f"the {extracts.LISTED} classes of the lowest F1; those of all 300 are in" in text
    assert "300 classes of 10 to 10 images each." in page
    assert "24 of 300 classes" in text and "24 of the 300 classes" in text


@pytest.mark.parametrize("count", [13, 41, 60])
def test_of_many_classes_some_are_shown_and_the_rest_counted(record, bundle, count):
    html = drawn(with_classes(record, count), bundle)
    pictured = min(count, extracts.PICTURED)
    assert html.count('class="example ') == 2 * pictured + 8  # a right and a wrong one each; and mistakes
    assert html.count('class="example wrong-one') == pictured + 8
    assert (f"The 15 most frequent of {count} pairs that were confused" in html) is (count > figures.NAMED)
    assert html.count('<th scope="row">kind') == min(count, extracts.LISTED)
    assert "kind" * 30 not in re.sub('alt="[^"]*"', "", html)


def test_files_and_notes_stand_in_the_latex_report_too(record, bundle, tmp_path):
    changed = with_classes(record, 41)
    changed.data.left_out = [LeftOut("not an image", 2, r"\input{x}.txt")]
    changed.data.notes = ["Folders were taken as 50 % of \\x."]
    page = conftest.drawn(changed, bundle)
    text = report.latex.convert(page, tmp_path, {})
    assert r"not used: not an image & 2 & \textbackslash input\{x\}.txt" in text
    assert r"\textbackslash x." in text


def test_a_matrix_of_many_classes_fits_the_page():
    for count in (41, 300):
        names = [f"class {i}" for i in range(count)]
        matrix = [[int(i == j) for j in range(count)] for i in range(count)]
        for figure in (
            figures.draw_confusion_matrix(matrix, names),
            figures.draw_counts({"train": dict.fromkeys(names, 2), "test": dict.fromkeys(names, 1)}),
        ):
            assert figure.get_figwidth() <= figures.WIDTH and figure.get_figheight() <= 5.5
            figures.as_svg(figure)
        assert f"{count} on the diagonal" in figures.confusion_words(matrix, names)
