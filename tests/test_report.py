"""The report, read back with a PDF reader that is not ours, and the answers' Markdown."""

import copy
import json
import re

import pytest
from conftest import ROOT
from pypdf import PdfReader

import report
from recipe import InputError
from report import answers, render, source


@pytest.fixture(scope="module")
def record(bundle):
    return json.loads((bundle.run / "record.json").read_text())


@pytest.fixture(scope="module")
def text(bundle):
    return flat("\n".join(page.extract_text() for page in PdfReader(bundle.pdf).pages))


def flat(text):
    """Text with hyphenation and all kinds of white space evened out."""
    return re.sub(r"\s+", " ", re.sub(r"[\u00ad\u2010]\s*", "", text))


def drawn(record, bundle, folder=None):
    """The report of a record as HTML."""
    return render.render_html(record, bundle.run, folder)


def test_the_report_holds_everything_the_assignment_asks_for(text, record):
    results = record["results"]
    assert "Name Student ID Date Lin Mei <b> 0812345" in text
    assert f"Total params: {record['model']['parameters']}" in text.replace(",", "")
    assert f"{results['correct']} of {results['total']} images" in text
    assert f"test loss of {results['loss']:.4f}" in text
    assert "Epoch: 6" in text
    assert "Execution time:" in text
    for question in ("6", "7", "8", "9", "10a", "10b", "10c", "10d"):
        assert f"Question {question}." in text
    for heading in ("Confusion matrix", "Example predictions", "References", "Hyperparameters"):
        assert heading in text


def test_each_class_is_scored_as_recorded(text, record):
    for name, scores in record["results"]["per_class"].items():
        row = f"{name} {scores['precision']:.3f} {scores['recall']:.3f} {scores['f1']:.3f} {scores['images']}"
        assert row in text


def test_every_example_shows_true_and_predicted_label_and_confidence(text, record):
    assert len(record["examples"]) == 9  # three test images in each of three classes
    for example in record["examples"]:
        assert f"true: {example['true']} predicted: {example['predicted']}" in text
        assert f"confidence {100 * example['confidence']:.1f}" in text
    wrong = sum(e["true"] != e["predicted"] for e in record["examples"]) + len(record["mistakes"])
    passed = record["results"]["passed"]  # the first page marks the verdict in the same way
    assert text.count("✗") == wrong + (not passed)
    assert text.count("✓") == sum(e["true"] == e["predicted"] for e in record["examples"]) + passed


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


@pytest.mark.parametrize("demonstration", [False, True])
@pytest.mark.parametrize("correct", [0, 3, 9])
def test_the_words_follow_the_result(record, bundle, correct, demonstration):
    changed = copy.deepcopy(record)
    results = changed["results"]
    results.update(correct=correct, accuracy=correct / 9, passed=correct / 9 >= 0.6)
    changed["training"]["history"][-1]["test_accuracy"] = correct / 9
    changed["data"]["demonstration"] = demonstration
    html = drawn(changed, bundle)
    assert ("baseline is reached" in html) == (correct == 9)
    assert ("baseline is not reached" in html) == (correct < 9)
    assert ("✗ below the" in html) == (correct < 9)
    assert ("Made from demonstration images" in html) == demonstration
    assert html.count("demonstration images") >= (8 if demonstration else 0)
    assert demonstration or "demonstration images" not in html


def test_drawing_the_report_leaves_the_record_as_it_is(record, bundle):
    before = copy.deepcopy(record)
    drawn(record, bundle)
    assert record == before


def test_rounding_never_makes_a_perfect_score():
    assert answers.percent(0.9999) == "99.9\u202f%"
    assert answers.percent(1.0) == "100.0\u202f%"
    assert answers.percent(0.97222, 2) == "97.22\u202f%"


def log_of(count, best=None):
    """A training log of so many epochs, and the history that goes with it."""
    text = "".join(f"Epoch: {i}\nline {i}\n" for i in range(1, count + 1)) + "Execution time: 1\n"
    return text, [{"test_accuracy": 0.9 if i == best else i / 1000} for i in range(1, count + 1)]


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
    return answers.render_answers(record, tmp_path)


def test_own_answers_replace_ours_file_by_file(tmp_path, record):
    ours = answers.render_answers(record)
    mixed = answered(tmp_path, record, "My *own* words,\r\nwith {{ results.accuracy|percent }}.")
    accuracy = answers.percent(record["results"]["accuracy"])
    assert mixed["q06"] == f"<p>My <em>own</em> words,\nwith {accuracy}.</p>\n"
    assert {k: v for k, v in mixed.items() if k != "q06"} == {k: v for k, v in ours.items() if k != "q06"}


def test_formulas_become_pictures_with_their_words_and_latex_as_text(tmp_path, record):
    html = answered(tmp_path, record, "Inline $x^2$ and\n\n$$\n\\frac{a}{b}\n$$ (7)\n")["q06"]
    assert re.findall(r'alt="([^"]+)"', html) == ["x squared", "fraction a over b end fraction"]
    assert re.findall(r'data-latex="([^"]+)"', html) == ["x^2", r"\frac{a}{b}"]
    assert "(7)</span>" in html
    assert html.count("data:image/svg+xml") == 2


def test_code_excerpts_are_the_live_source():
    text, first, last = source.excerpt("vit.py", "Attention.forward")
    lines = (ROOT / "vit.py").read_text().splitlines()
    assert lines[first - 1].strip() == "def forward(self, x):"
    assert [line.strip() for line in text.splitlines()] == [s.strip() for s in lines[first - 1 : last]]
    with pytest.raises(LookupError):
        source.excerpt("vit.py", "Attention.backward")


def test_html_and_scripts_in_answers_stay_text(tmp_path, record):
    html = answered(tmp_path, record, "<script>alert(1)</script> [x](javascript:alert(1))")["q06"]
    assert "<script" not in html
    assert "href" not in html


def test_class_names_are_shown_letter_by_letter(record):
    changed = copy.deepcopy(record)
    odd = "*a*<b>$x$_{{ 1 }}"
    changed["data"]["classes"][0] = odd
    results = changed["results"]
    results["per_class"] = {odd: dict.fromkeys(("precision", "recall", "f1"), 0.0) | {"images": 1}}
    html = answers.render_answers(changed)["q09"]
    assert "*a*&lt;b&gt;$x$_{{ 1 }}" in html


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n{{ results.accuracy", r"q06\.md, line 2: "),
        ("{{ resluts.accuracy }}", r"q06\.md: \{\{ resluts \}\} can't be looked up"),
        ("$\\frac{a$", r"q06\.md: can't set the formula '\\\\frac\{a'"),
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
    picture = (bundle.run / record["examples"][0]["picture"]).read_bytes()
    (tmp_path / "secret.jpg").write_bytes(picture)
    (folder / "in side.jpg").write_bytes(picture)
    html = answered(folder, record, "![a stripe](<in side.jpg>)")["q06"]
    assert 'alt="a stripe" src="data:image/jpeg;base64,' in html
    for text, message in {
        "![a](../secret.jpg)": r"q06\.md: can't show the picture \.\./secret\.jpg",
        "![a](http://127.0.0.1:9/x.png)": "can't show the picture http",
        "![a](/etc/passwd)": "can't show",
        "![](<in side.jpg>)": "needs a description",
    }.items():
        with pytest.raises(InputError, match=message):
            answered(folder, record, text)


def test_weasyprint_may_read_nothing_but_the_page():
    fetcher = render._fetcher()
    for url in ("file:///etc/passwd", "http://127.0.0.1:9/x.png"):
        with pytest.raises(ValueError, match="not part of the report"):
            fetcher.fetch(url)


# Missing system libraries


@pytest.mark.parametrize(
    ("system", "release", "command"),
    [
        ("Linux", 'ID=debian\nVERSION="12"', "apt-get install -y libpango"),
        ("Linux", "ID=linuxmint\nID_LIKE='ubuntu debian'", "apt-get install -y libpango"),
        ("Linux", 'ID="rocky"\nID_LIKE="rhel centos fedora"', "dnf install -y pango"),
        ("Linux", "ID=arch", "apt-get install"),
        ("Darwin", "", "brew install pango"),
        ("Windows", "", "mingw-w64-ucrt-x86_64-pango"),
    ],
)
def test_missing_libraries_come_with_the_command_that_installs_them(system, release, command):
    assert command in render.install_hint(system, release)


def test_missing_libraries_are_one_clear_line(monkeypatch):
    import builtins

    real = builtins.__import__

    def without_pango(name, *args, **kwargs):
        if name == "weasyprint":
            print("a banner")
            raise OSError("cannot load library 'libpango-1.0-0': no such file. Additionally, ...")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pango)
    with pytest.raises(InputError, match=r"system library \(libpango-1\.0-0\): .*install") as caught:
        report.check_renderer()
    assert "\n" not in str(caught.value)
