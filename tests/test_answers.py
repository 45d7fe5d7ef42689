"""Answers are text of a stranger: they change no figure, and end where they would go on for ever."""

import copy

import pytest
from conftest import call

from lab.errors import InputError
from lab.findings import Findings
from report import answers, rehearsal
from verify.pages import carried_files, open_pdf

APART = rehearsal.apart  # before the tests' own takes its place


@pytest.fixture
def limits(monkeypatch):
    """The process with its limits, shorter."""
    monkeypatch.setattr(rehearsal, "apart", APART)
    monkeypatch.setattr(rehearsal, "SECONDS", 8)


def write(folder, text, name="q06.md"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes over 8 s"),
        ('{% set ns = namespace(s="x") %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}',
         "too much memory"),
        ("{{ 'x'|center(9999999999) }}", "too much memory"),
    ],
)  # fmt: skip
def test_endless_and_boundless_templates_end_before_the_training(
    tmp_path, limits, text, message, monkeypatch
):
    if "memory" in message:  # which a busy machine takes longer to fill than 8 s
        monkeypatch.setattr(rehearsal, "SECONDS", 60)
    with pytest.raises(InputError, match=message) as error:
        answers.check_answers(write(tmp_path / "a", text))
    assert "\n" not in str(error.value)


def test_an_answer_cannot_change_what_was_measured(tmp_path, limits):
    record = rehearsal.example_record()
    record.findings = Findings()
    before = copy.deepcopy(record)
    for text in (
        "{% set _ = results.per_class.update({'a': 1}) %}x",
        "{% set _ = data.classes.append('c') %}x",
        "{% set _ = results.confusion_matrix.clear() %}x",
        "{% set _ = results.__setattr__('accuracy', 1.0) %}x",
    ):
        with pytest.raises(InputError, match=r"q06\.md.*(unsafe|not safe)"):
            answers.answer_texts(record, write(tmp_path / "a", text))
    assert record == before
    assert (
        answers.answer_texts(record, write(tmp_path / "a", "own: {{ results.total }}"))["q06"][1] == "own: 2"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ results.acuracy }}", r"q06\.md.*acuracy"),
        ("x" * 200_001, "has more than 200 kB"),
        (
            "{% for i in range(20000) %}" + "x" * 100 + "{% endfor %}",
            "becomes 2000 kB of text, more than 1000",
        ),
        (" \n", r"q06\.md is empty: write the answer, or remove the file for ours"),
        ("{# to do #}", r"q06\.md is empty"),
        ("$" + "{ " * 21 + "x" + " }" * 21 + "$", "nested too deep"),
        ("$" + "x+" * 1500 + "x$", "is too long"),
        ("{{ code('Nope') }}", r"q06\.md.*the code has no Nope"),
        ("{{ code('ViT', 'no such line') }}", r"q06\.md.*ViT has no line with 'no such line'"),
        ("See [](#nope).", r"q06\.md: there is no #nope; there are .*table-recipe"),
        ("See [the table](#table-recipes).", r"q06\.md: there is no #table-recipes"),
        (r"$\frac{1}$", r"q06\.md: cannot set the formula .*: \w+"),
    ],
)
def test_faults_show_before_the_training_and_not_after_it(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        answers.check_answers(write(tmp_path / "a", text))


def test_an_answer_in_another_format_is_not_passed_over(tmp_path):
    folder = write(write(tmp_path / "a", "Mine."), "Mine, too.", "q08.txt")
    (folder / "q06.png").write_bytes(b"a picture may have an answer's name")
    with pytest.raises(InputError, match=r"q08\.txt is not read: save it as Markdown, q08\.md"):
        answers.check_answers(folder)


def test_our_own_answers_pass_the_trial_in_any_folder(tmp_path):
    for path in answers.ANSWERS.glob("*.md"):
        write(tmp_path / "a", path.read_text(encoding="utf-8"), path.name)
    answers.check_answers(tmp_path / "a")


def test_what_is_not_drawn_again_is_named(copy, tmp_path, capsys):
    """An answer that the last report had in the student's words, and the LaTeX of another report."""
    folder = write(write(tmp_path / "both", "Mine."), "Mine, too.", "q07.md")
    assert call(*copy.args, "--report-only", "--answers", folder) == 0
    (copy.folder / "latex").mkdir()
    capsys.readouterr()
    assert call(*copy.args, "--report-only", "--answers", write(tmp_path / "one", "Mine.")) == 0
    said = capsys.readouterr().out
    assert "q07.md is ours again" in said and "q06.md" not in said
    assert "latex/ holds an earlier report" in said


def test_an_own_answer_is_used_from_any_folder_and_kept_when_the_report_is_drawn_again(
    bundle, tmp_path, monkeypatch
):
    """In a process of its own, as for a user: a folder that is named from where the user stands."""
    made = bundle.copy_to(tmp_path)
    monkeypatch.setattr(rehearsal, "apart", APART)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine", "My own words: {{ results.accuracy | percent }}.")
    assert call(*made.args, "--report-only", "--answers", "mine", "--quiet") == 0
    carried = carried_files(open_pdf(made.pdf.read_bytes()))
    assert carried["answers/q06.filled.md"].decode().startswith("My own words: ")
    assert call(*made.args, "--report-only", "--zip") == 0
    assert carried_files(open_pdf(made.pdf.read_bytes())) == carried
    (tmp_path / "mine" / "q06.md").write_text("{{ nothing }}")
    assert call(*made.args, "--report-only", "--answers", "mine", "--quiet") == 2
