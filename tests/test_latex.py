"""The report as LaTeX: read back by pandoc, and, where TeX is installed, compiled and compared."""

import copy
import json
import os
import re
import shutil
import subprocess

import pypandoc
import pytest
from PIL import Image
from pypdf import PdfReader

import report
import run
from recipe import InputError
from report import answers, latex

NEEDS_TEX = pytest.mark.skipif(not shutil.which("latexmk"), reason="needs latexmk (README, Tests)")
ODD = "rolled_in & 100% $x$ #1 ~^\\ {z} 'a' \"b\" `c` --evaluate [d] <<e>>"


@pytest.fixture(scope="module")
def record(bundle):
    return json.loads((bundle.run / "record.json").read_text())


@pytest.fixture
def no_tex(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


def rename_class(record, old, new):
    """The record as if a class had another name all along."""
    text = json.dumps(record, ensure_ascii=False)
    changed = json.loads(text.replace(json.dumps(old), json.dumps(new, ensure_ascii=False)))
    assert new in changed["data"]["classes"]
    return changed


def source(record, bundle, folder, answers_folder=None):
    """The text of the .tex, without the compiler."""
    folder.mkdir()
    name = latex._fill(folder, record, bundle.run, answers_folder)
    return (folder / f"{name}.tex").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tex(record, bundle, tmp_path_factory):
    return source(record, bundle, tmp_path_factory.mktemp("latex") / "latex")


def answered(tmp_path, record, text, name="q06.md"):
    """An own answer as LaTeX."""
    folder = tmp_path / "answers"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    (tmp_path / "figures").mkdir(exist_ok=True)
    report.check_latex(folder)
    return latex.convert_answers(record, folder, tmp_path / "figures")[name[:3]]


def read_back(text):
    """What a reader of LaTeX that is not ours takes the text for."""
    plain = pypandoc.convert_text(text, "plain", format="latex", extra_args=["--wrap=none"])
    return plain.replace("\u00a0", " ").strip()


# Escaping


@pytest.mark.parametrize(
    "text",
    [
        r"\input{/etc/passwd}",
        r"\write18{rm -rf ~} \end{document}",
        "50 % of #1 & $x_1^2$ {a} ~b",
        r"C:\temp\new",
        "^^5cinput",
        "[a] *b* <c> |d|",
        "Łódź 中文 Имя",
    ],
)
def test_looked_up_text_is_shown_letter_by_letter(text):
    assert read_back(latex.escape(text)) == text
    assert read_back(latex.breakable(text)) == text


def test_no_ligature_or_control_character_is_made_of_looked_up_text():
    assert "--" not in latex.escape("--evaluate")
    assert "''" not in latex.escape("''a``")
    assert "``" not in latex.escape("''a``")
    assert latex.escape("a\x00b\u202ec\r\nd") == "abc d"


def test_very_long_names_may_break_and_short_ones_stay_whole():
    assert latex.breakable("crazing") == "crazing"
    assert r"\allowbreak" in latex.breakable("a" * 40)


# The .tex


def test_the_source_is_written_as_a_person_would(tex, record):
    for heading in ("Data", "Model", "Training", "Evaluation", "Predictions", "Inside the model"):
        assert re.search(rf"^\\section\{{{heading}\}}\\label", tex, re.MULTILINE)
    for number in ("6", "7", "8", "9", "10a", "10b", "10c", "10d"):
        assert f"\\subsection*{{Question {number}. " in tex
    for command in (
        r"\toprule",
        r"\begin{lstlisting}[language=Python, caption={vit.py, lines ",
        r"\cref{eq:1}",
    ):
        assert command in tex
    assert r"\equation" not in tex
    assert "{{" not in re.sub(r"\{\{\[\}", "", tex.partition(r"\begin{document}")[2])


def test_every_reference_has_its_target(tex, record, bundle, tmp_path):
    labels = re.findall(r"\\label\{([^}]+)\}", tex)
    assert len(labels) == len(set(labels))
    asked = re.findall(r"\\(?:[cC]ref|pageref)\{([^}]+)\}", tex) + re.findall(r"\\hyperref\[([^]]+)\]", tex)
    assert len(asked) > 20
    assert {label for some in asked for label in some.split(",")} <= set(labels)
    folder = tmp_path / "latex"
    source(record, bundle, folder)
    bib = set(re.findall(r"@\w+\{(\w+),", (folder / "references.bib").read_text()))
    cited = {key for keys in re.findall(r"\\(?:no)?cite\{([^}]+)\}", tex) for key in keys.split(",")}
    assert cited == bib
    pictures = re.findall(r"\\includegraphics\[[^]]*\]\{([^}#]+)\}", tex)
    pictures += re.findall(r"^\\example\{([^}]+)\}", tex, re.MULTILINE)
    kinds = ("examples", "mistakes", "train_samples", "test_samples")
    studies = sum(found is not None for found in record["findings"].values())  # a figure each
    assert len(pictures) == 9 + studies + sum(len(record[kind]) for kind in kinds)
    for picture in pictures:
        assert (folder / picture).is_file()
    assert (folder / "figures" / "confusion.pdf").read_bytes().startswith(b"%PDF")


def test_the_answer_on_attention_refers_to_its_figures(tex):
    answer = tex.partition(r"\label{q10c}")[2].partition(r"\label{q10d}")[0]
    for name in ("rollout", "heads", "distance"):
        assert f"\\cref{{fig:{name}}}" in answer
        assert re.search(rf"\\includegraphics\[[^]]*\]\{{figures/{name}\.pdf\}}\s*\\caption", tex)


def test_numbers_are_those_of_the_record(tex, record):
    results = record["results"]
    assert f"{results['correct']} of {results['total']} images" in tex
    assert f"{results['loss']:.4f}" in tex
    assert f"{record['model']['parameters']:,}" in tex
    assert f"{100 * results['interval'][0]:.1f}" in tex
    assert "Total params: " in tex
    assert "Epoch: 6" in tex
    for name, s in results["per_class"].items():
        row = f"{name} & {s['precision']:.3f} & {s['recall']:.3f} & {s['f1']:.3f} & {s['images']}"
        assert row in tex
    for example in record["examples"]:
        confidence = f"{100 * example['confidence']:.1f}"
        assert f"{{{example['true']}}}{{{example['predicted']}}}{{{confidence}" in tex


def test_names_with_special_characters_and_other_scripts(record, bundle, tmp_path):
    changed = rename_class(record, "crazing", ODD)
    changed["student"]["name"] = r"林美玲 \input{x}"
    text = source(changed, bundle, tmp_path / "latex")
    assert ODD not in text
    assert r"\input" not in text
    assert latex.breakable(ODD) in text
    assert r"\babelprovide[import,onchar=ids]{chinese}" in text


def test_references_to_nothing_are_refused(tmp_path, record):
    with pytest.raises(InputError, match=r"q06\.md: there is no #nothing"):
        answered(tmp_path, record, "See [](#nothing).")


def test_the_demonstration_band_is_there_too(record, bundle, tmp_path):
    changed = copy.deepcopy(record)
    changed["data"]["demonstration"] = True
    assert "Made from demonstration images" in source(changed, bundle, tmp_path / "latex")


# Answers


def test_markdown_of_an_own_answer_comes_through(tmp_path, record):
    text = answered(
        tmp_path,
        record,
        "My *own* “words” with {{ results.total }} images, [](#eq-X), [](#eq-Y), "
        "[](#confusion) and `a_b` [](#ref-vit).\n\n"
        "$$\nx^2 % unseen\n$$ (X)\n\n"
        "| a | b |\n|---|--:|\n| 1 | **2** |\n\n"
        "```python f.py, line 3\nx = '\\\\'\n```\n",
    )
    words = r"\emph{own} ``words'' with 9 images, \cref{eq:X}, {equation~Y}, \cref{fig:confusion} and "
    assert words + r"\code{a\_b} \cite{vit}." in " ".join(text.split())
    assert "\\begin{equation}\\tag{X}\\label{eq:X}\nx^2\n\\end{equation}" in text
    assert (
        "\\begin{tabular}{@{}lr@{}}\n\\toprule\na & b \\\\\n\\midrule\n1 & \\textbf{2} \\\\\n\\bottomrule"
        in text
    )
    assert (
        "\\begin{lstlisting}[language=Python, caption={f.py, line 3}]\nx = '\\\\'\n\\end{lstlisting}" in text
    )


def test_commands_in_an_answers_text_stay_text(tmp_path, record):
    words = r"\input{/etc/passwd} \write18{ls} \directlua{x} <b>bold</b> ^^5cinput"
    text = answered(tmp_path, record, re.sub(r"([\\^])", r"\\\1", words))
    assert not re.search(r"\\(input|write|directlua)|\^\^5c", text)
    assert read_back(text) == words


@pytest.mark.parametrize(
    "command",
    [
        *(r"\input", r"\include", r"\write", r"\openin", r"\read", r"\catcode", r"\csname", r"\def"),
        *(r"\immediate", r"\directlua", r"\let", r"\expandafter", r"\newcommand", r"\special", r"\href"),
        *(r"\includegraphics", r"\lstinputlisting", r"\usepackage", r"\unknowncommand"),
    ],
)
def test_commands_that_do_more_than_maths_are_refused(tmp_path, record, command):
    with pytest.raises(InputError, match=r"q06\.md: " + re.escape(command) + " can't stand in a formula"):
        answered(tmp_path, record, f"Text $x + {command}{{y}}$.")


@pytest.mark.parametrize(
    "formula", [r"\^^69nput{x}", r"x \) \( y", r"\begin{filecontents}{a}\end{filecontents}", r"\[ x"]
)
def test_tricks_in_formulas_are_refused(tmp_path, record, formula):
    with pytest.raises(InputError, match=r"q06\.md: .* can't stand in a formula"):
        answered(tmp_path, record, f"$$\n{formula}\n$$")


def test_our_own_answers_pass_and_usual_maths_does(tmp_path, record):
    usual = (
        r"$\begin{pmatrix} a & b \\ c & d \end{pmatrix}$ "
        r"$\cdot \hat{x}_{i,j} \in \mathbb{R}^{n}, \left(\frac{1}{2}\right)$"
        r" $\sum_{i=1}^N \alpha_i \leq 100\%,\; \sqrt{x} \approx \mathrm{softmax}(\mathcal{L}) \to \infty$"
    )
    assert r"\begin{pmatrix}" in answered(tmp_path, record, usual)
    for key, (path, text) in answers.answer_texts(record).items():
        for formula in latex._formulas(text):
            assert latex.formula(path, formula), key


def test_code_cannot_end_its_listing(tmp_path, record):
    with pytest.raises(InputError, match=r"q06\.md: code that holds \\end\{lstlisting\}"):
        answered(tmp_path, record, "```\nx\n\\end{lstlisting}\\input{/etc/passwd}\n```")


def test_pictures_come_from_the_answers_folder_only(tmp_path, record):
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    (tmp_path / "answers").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "answers" / "inside.png")
    assert r"\includegraphics" in answered(tmp_path, record, "![in](inside.png)")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["answer-1.png"]
    for other in ("../secret.png", "http://127.0.0.1:9/x.png"):
        with pytest.raises(InputError, match=r"q06\.md: can't show the picture"):
            answered(tmp_path, record, f"![out]({other})")


# The folder, the command line


def copied(bundle, tmp_path):
    """A copy of the bundle, and the arguments that name it."""
    outputs = tmp_path / "outputs"
    shutil.copytree(bundle.folder, outputs / "0812345", ignore=shutil.ignore_patterns("dataset*"))
    return outputs / "0812345", ["--student-id", "0812345", "--output-dir", str(outputs), "--quiet"]


def test_pandoc_is_asked_for_before_any_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pypandoc, "get_pandoc_version", lambda: (_ for _ in ()).throw(OSError("no pandoc")))
    monkeypatch.chdir(tmp_path)
    assert run.main(["--student-id", "1", "--data", "demo", "--latex", "--quiet"]) == 2
    assert capsys.readouterr().err == "run.py: --latex needs pandoc: pip install pypandoc-binary (35 MB)\n"
    assert not list(tmp_path.rglob("*Lab8*"))


def test_without_latexmk_the_source_is_written_and_said_so(bundle, tmp_path, capsys, no_tex):
    folder, args = copied(bundle, tmp_path)
    (folder / "latex").mkdir()
    (folder / "latex" / "old.tex").write_text("old")
    assert run.main([*args, "--report-only", "--latex"]) == 0
    said = capsys.readouterr()
    assert str(folder / "latex" / "0812345_Lab8_Homework.tex") in said.out.splitlines()
    assert said.err == "run.py: latexmk is not installed: the .tex was not compiled\n"
    names = {path.name for path in (folder / "latex").iterdir()}
    assert names == {"0812345_Lab8_Homework.tex", "references.bib", "latexmkrc", "figures", "fonts"}
    assert not list(folder.glob(".*"))  # nothing left lying about


def test_a_fault_leaves_the_old_folder_as_it_was(bundle, tmp_path, capsys):
    folder, args = copied(bundle, tmp_path)
    (folder / "latex").mkdir()
    (folder / "latex" / "old.tex").write_text("old")
    (tmp_path / "q06.md").write_text(r"$\catcode$")
    assert run.main([*args, "--report-only", "--latex", "--answers", str(tmp_path)]) == 2
    assert "catcode" in capsys.readouterr().err
    assert [path.name for path in (folder / "latex").iterdir()] == ["old.tex"]
    assert not list(folder.glob(".*"))


def test_a_new_run_takes_the_old_latex_folder_away(tmp_path):
    from bundle import staged

    folder = tmp_path / "1"
    (folder / "latex").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with staged(folder, "1"):
        pass
    assert {path.name for path in folder.iterdir()} == {"run", "notes.txt"}


def test_a_failed_compilation_names_the_log_and_costs_nothing(record, bundle, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "latexmk"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\necho '! Undefined control sequence.' > 0812345_Lab8_Homework.log\ntouch x.aux\nexit 12\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    paths, message = report.write_latex(record, bundle.run, tmp_path / "latex")
    assert [path.name for path in paths] == ["0812345_Lab8_Homework.tex"]
    assert message == (
        "0812345_Lab8_Homework.tex did not compile (Undefined control sequence): "
        "see latex/0812345_Lab8_Homework.log"
    )
    assert (tmp_path / "latex" / "0812345_Lab8_Homework.log").is_file()
    assert not (tmp_path / "latex" / "x.aux").exists()


# Where TeX is installed


def squeezed(text):
    """Text without what line breaking adds or takes: white space, hyphens, quotation marks, ligatures."""
    for ligature, letters in (("ﬁ", "fi"), ("ﬂ", "fl"), ("ﬀ", "ff"), ("ﬃ", "ffi"), ("ﬄ", "ffl")):
        text = text.replace(ligature, letters)
    return re.sub(r"[\s\-\u00ad\u2010-\u2015\u2018-\u201f'\"()]", "", text)


def pdf_text(path):
    return "\n".join(page.extract_text() for page in PdfReader(path).pages)


@NEEDS_TEX
def test_it_compiles_without_a_warning_that_matters(record, bundle, tmp_path):
    changed = rename_class(record, "crazing", ODD)
    changed = rename_class(changed, "inclusion", "a_very_long_class_name_of_" + 3 * "unbroken" + "_царапины")
    changed["student"]["name"] = "Łukasz Имя"
    changed["results"]["passed"] = False
    folder = tmp_path / "latex"
    source(changed, bundle, folder)
    # As a user does who has copied the folder elsewhere.
    environment = os.environ | {"TEXMFCACHE": str(tmp_path)}
    process = subprocess.run(
        ["latexmk"], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert process.returncode == 0, process.stdout[-3000:]
    log = (folder / "0812345_Lab8_Homework.log").read_text(encoding="utf-8", errors="replace")
    for warning in ("Overfull", "Warning", "undefined", "multiply", "Missing character", "\n!"):
        assert warning not in log, log[log.index(warning) - 200 : log.index(warning) + 300]
    bibliography = (folder / "0812345_Lab8_Homework.blg").read_text()
    assert "Warning--" not in bibliography


@NEEDS_TEX
def test_the_compiled_report_says_what_the_other_pdf_says(record, bundle, tmp_path, capsys):
    folder, args = copied(bundle, tmp_path)
    assert run.main([*args, "--report-only", "--latex"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    path = folder / "latex" / "0812345_Lab8_Homework.pdf"
    assert str(path) in said.out.splitlines()
    names = {path.name for path in (folder / "latex").iterdir()}
    assert names == {path.name, f"{path.stem}.tex", "references.bib", "latexmkrc", "figures", "fonts"}

    ours, other = pdf_text(path), pdf_text(folder / "0812345_Lab8_Homework.pdf")
    numbers = set(re.findall(r"\d+\.\d+", other))
    assert len(numbers) > 30
    assert all(number in squeezed(ours) for number in numbers)
    for text in (squeezed(ours), squeezed(other)):
        paragraphs = 0
        for page in answers.render_answers(record).values():
            for paragraph in re.findall(r"<(?:p|td)\b[^>]*>(.*?)</(?:p|td)>", page, re.DOTALL):
                for piece in re.split(r"<img[^>]*>", paragraph):  # formulas are pictures in one of the two
                    words = pypandoc.convert_text(piece, "plain", format="html", extra_args=["--wrap=none"])
                    paragraphs += 1
                    for sentence in re.split(r"(?<=[.:;,])\s", words):
                        if squeezed(sentence) not in text:  # it may go on on the next page
                            found = [squeezed(word) in text for word in sentence.split()]
                            assert all(found), sentence
        assert paragraphs > 80
