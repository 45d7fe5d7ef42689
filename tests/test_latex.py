"""The report as LaTeX: read back by pandoc, and, where TeX is installed, compiled and compared."""

import copy
import dataclasses
import json
import os
import re
import shutil
import subprocess
from html import escape, unescape

import msgspec
import pypandoc
import pytest
from PIL import Image
from pypdf import PdfReader

import report
import run
from lab.errors import InputError
from lab.record import Record, read_record
from report import answers, formulas, latex

NEEDS_TEX = pytest.mark.skipif(not shutil.which("latexmk"), reason="needs latexmk (README, Tests)")
ODD = "rolled_in & 100% $x$ #1 ~^\\ {z} 'a' \"b\" `c` --evaluate [d] <<e>> |f|"


@pytest.fixture(scope="module")
def record(bundle):
    return read_record(bundle.run / "record.json")


@pytest.fixture
def no_tex(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


def rename_class(record, old, new):
    """The record as if a class had another name all along."""
    text = json.dumps(msgspec.to_builtins(record), ensure_ascii=False)
    changed = json.loads(text.replace(json.dumps(old), json.dumps(new, ensure_ascii=False)))
    assert new in changed["data"]["classes"]
    return msgspec.convert(changed, Record)


def source(record, bundle, folder, answers_folder=None):
    """The text of the .tex, without the compiler."""
    folder.mkdir()
    return latex.write_source(folder, record, bundle.run, answers_folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(record, bundle, tmp_path_factory):
    """The folder of the LaTeX report, without the compiler."""
    folder = tmp_path_factory.mktemp("latex") / "latex"
    source(record, bundle, folder)
    return folder


@pytest.fixture(scope="module")
def tex(folder):
    return (folder / "0812345_Lab8_Homework.tex").read_text(encoding="utf-8")


def page_of(content):
    """A page that holds so much HTML, as LaTeX."""
    return f'<html><body><main id="confusion">{content}</main></body></html>'


def converted(tmp_path, content):
    """HTML of a page as LaTeX, what stands in the document."""
    text = latex.convert(page_of(content), tmp_path, {})
    return text.partition(r"\begin{document}")[2].rpartition(r"\end{document}")[0].strip()


def answered(tmp_path, record, text, name="q06.md"):
    """An own answer as LaTeX."""
    folder = tmp_path / "answers"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    (tmp_path / "figures").mkdir(exist_ok=True)
    report.check_latex(folder)
    path, page = answers.render_answers(answers.answer_texts(record, folder))[name[:3]]
    page = page_of(f'<div data-file="{path}">{page}</div><ol><li id="ref-vit">a</li></ol>')
    text = latex.convert(page, tmp_path / "figures", {})
    return text.partition(r"\begin{document}")[2].partition(r"\begin{enumerate}")[0].strip()


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
        "[a] *b* <c>",
        "Łódź 中文 Имя",
    ],
)
def test_text_is_shown_letter_by_letter(tmp_path, text):
    for element in ("p", "b", "code", "h3"):
        assert read_back(converted(tmp_path, f"<{element}>{escape(text)}</{element}>")) == text


def test_a_name_in_two_directions_is_set_as_one_box(record, bundle, tmp_path):
    """In a bare cell of a table LuaTeX turns the Latin letters beside the Arabic ones."""
    student = dataclasses.replace(record.student, name="علي Ali")
    text = source(dataclasses.replace(record, student=student), bundle, tmp_path / "latex")
    assert r"\mbox{علي Ali} & " in text


def test_no_ligature_or_control_character_is_made_of_looked_up_text(tmp_path):
    text = converted(tmp_path, "<p>--evaluate “b” a\u202ec\x01d</p>")
    assert text == r"-\/-evaluate “b” acd"


def test_very_long_names_may_break_and_short_ones_stay_whole(tmp_path):
    assert converted(tmp_path, "<p>crazing rolled_in_scale</p>") == r"crazing rolled\_in\_scale"
    assert r"\allowbreak" in converted(tmp_path, f"<p>{40 * 'a'}</p>")


# The .tex


def test_the_source_is_written_as_a_person_would(tex, record):
    for heading in ("Data", "Model", "Training", "Evaluation", "Predictions", "Inside the model"):
        assert re.search(rf"^\\section\{{{heading}\}}\\label\{{\w+\}}$", tex, re.MULTILINE)
    for number in ("6", "7", "8", "9", "10a", "10b", "10c", "10d"):
        assert f"\\subsection*{{Question {number}. " in tex
    for command in (r"\toprule", r"\begin{lstlisting}[language=Python]", r"\cref{eq-1}", r"\cite{ref-vit}"):
        assert command in tex
    assert r"\codetitle{0812345\_Lab8\_Homework.py, step 3, lines " in tex
    body = tex.partition(r"\begin{document}")[2]
    for trace in ("{{", "$", "data:image", "<", latex.JOIN, r"\textbf{}", r"\equation"):  # of how it was made
        assert trace not in re.sub(
            r"\{\{\[\}|\\begin\{(lstlisting|Verbatim).*?\\end", "", body, flags=re.DOTALL
        )


def test_every_reference_has_its_target(tex, folder, record):
    labels = re.findall(r"\\label\{([^}]+)\}", tex)
    assert len(labels) == len(set(labels))
    asked = re.findall(r"\\(?:cref|pageref)\{([^}]+)\}", tex) + re.findall(r"\\hyperref\[([^]]+)\]", tex)
    assert len(asked) > 20
    assert set(asked) <= set(labels)
    cited = set(re.findall(r"\\cite\{([^}]+)\}", tex))
    assert len(cited) > 5
    assert cited <= set(re.findall(r"\\bibitem\{([^}]+)\}", tex))
    pictures = re.findall(r"\\includegraphics\[[^]]*\]\{([^}#]+)\}", tex)
    kinds = (
        record.shown.examples,
        record.shown.mistakes,
        record.shown.train_samples,
        record.shown.test_samples,
    )
    studies = [record.findings.search, record.findings.diary, record.findings.comparison]
    figures = 9 + sum(found is not None for found in studies)
    assert len(pictures) == figures + sum(map(len, kinds))
    assert sorted(f"figures/{path.name}" for path in (folder / "figures").iterdir()) == sorted(pictures)
    assert (folder / "figures" / "confusion.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_record_gives_the_same_bytes(folder, record, bundle, tmp_path):
    again = tmp_path / "again"
    source(record, bundle, again)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) > 40
    assert [(again / file).read_bytes() == (folder / file).read_bytes() for file in files] == [True] * len(
        files
    )


def test_pictures_are_the_files_of_the_run(folder, bundle, record):
    shown = [path.read_bytes() for path in sorted((folder / "figures").glob("picture-*"))]
    samples = record.shown.train_samples + record.shown.test_samples
    assert shown[: len(samples)] == [(bundle.run / sample.picture).read_bytes() for sample in samples]


def test_the_answer_on_attention_refers_to_its_figures(tex):
    answer = tex.partition(r"\label{q10c}")[2].partition(r"\label{q10d}")[0]
    for name in ("rollout", "heads", "distance"):
        assert f"\\cref{{{name}}}" in answer
        assert re.search(rf"\\includegraphics\[[^]]*\]\{{figures/{name}\.pdf\}}\s*\\caption", tex)
        assert tex.count(f"\\label{{{name}}}") == 1


def test_numbers_are_those_of_the_record(tex, record):
    results = record.results
    assert f"{results.correct} of {results.total} images" in tex
    assert f"{results.loss:.4f}" in tex
    assert f"{record.model.parameters:,}" in tex
    assert f"{100 * results.interval[0]:.1f}" in tex
    assert "Total params: " in tex
    assert "Epoch: 6" in tex
    for name, s in results.per_class.items():
        assert f"{name} & {s.precision:.3f} & {s.recall:.3f} & {s.f1:.3f} & {s.images}" in tex
    for example in record.shown.examples:
        shown = f"true: {example.true}\\\\\npredicted: {example.predicted}\\\\\nconfidence "
        assert f"{shown}{100 * example.confidence:.1f}" in tex


def test_names_with_special_characters_and_other_scripts(record, bundle, tmp_path):
    changed = rename_class(record, "crazing", ODD)
    changed.student.name = r"林美玲 \input{x}"
    text = source(changed, bundle, tmp_path / "latex")
    assert ODD not in text
    assert r"\input" not in text
    assert text.count(r"100\% \$x\$ \#1") >= 10  # the table, samples, examples
    assert r"pdfauthor={林美玲 \textbackslash input\{x\}}" in " ".join(text.split())
    assert r"\babelprovide[import,onchar=ids]{chinese}" in text


def test_references_to_nothing_are_refused(tmp_path, record, bundle):
    with pytest.raises(InputError, match=r"q06\.md: there is no #nothing"):
        answered(tmp_path, record, "See [this](#nothing).")
    with pytest.raises(InputError, match=r"q06\.md: there is no #a%5D"):
        answered(tmp_path, record, r"See [this](#a]{}\\input{x}).")
    (tmp_path / "answers" / "q06.md").write_text("See [](#nothing).")
    with pytest.raises(InputError, match=r"q06\.md: there is no #nothing"):
        source(record, bundle, tmp_path / "latex", tmp_path / "answers")


def test_the_demonstration_band_is_there_too(record, bundle, tmp_path):
    changed = copy.deepcopy(record)
    changed.data.demonstration = True
    text = source(changed, bundle, tmp_path / "latex")
    assert re.search(r"\\begin\{demo-band\}\s*\\textbf\{Made from demonstration images", text)
    assert text.count(r"\demotag{demonstration images}") > 8


# Answers


def test_markdown_of_an_own_answer_comes_through(tmp_path, record):
    text = answered(
        tmp_path,
        record,
        "My *own* “words” with {{ results.total }} images, [](#eq-X), [](#eq-Y), "
        "[](#confusion), [here](#confusion) and `a_b` [](#ref-vit).\n\n"
        "$$\nx^2 % unseen\n$$ (X)\n\n"
        "| a | b |\n|---|--:|\n| 1 | **2** |\n\n"
        "```python f.py, line 3\nx = '\\\\'\n```\n",
    )
    words = r"\emph{own} “words” with 9 images, \cref{eq-X}, {equation~Y}, \cref{confusion}, "
    words += r"{\hyperref[confusion]{here}} and \texttt{a\_b} \cite{ref-vit}."
    assert words in " ".join(text.split())
    # Without a blank line, which would add space above it.
    assert "\\cite{ref-vit}.\n\\begin{equation}\\tag{X}\\label{eq-X}\nx^2\n\\end{equation}" in text
    assert (
        "\\begin{tabular}{@{}lr@{}}\n\\toprule\na & b \\\\\n\\midrule\n1 & \\textbf{2} \\\\\n\\bottomrule"
        in text
    )
    assert (
        "\\codetitle{f.py, line 3}\n\n\\begin{lstlisting}[language=Python]\nx = '\\\\'\n\\end{lstlisting}"
        in text
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
    with pytest.raises(InputError, match=r"q06\.md: " + re.escape(command) + " cannot stand in a formula"):
        answered(tmp_path, record, f"Text $x + {command}{{y}}$.")


@pytest.mark.parametrize(
    "formula", [r"\^^69nput{x}", r"x \) \( y", r"\begin{filecontents}{a}\end{filecontents}", r"\[ x"]
)
def test_tricks_in_formulas_are_refused(tmp_path, record, formula):
    with pytest.raises(InputError, match=r"q06\.md: .* cannot stand in a formula"):
        answered(tmp_path, record, f"$$\n{formula}\n$$")


def test_our_own_answers_pass_and_usual_maths_does(tmp_path, record):
    usual = (
        r"$\begin{pmatrix} a & b \\ c & d \end{pmatrix}$ "
        r"$\cdot \hat{x}_{i,j} \in \mathbb{R}^{n}, \left(\frac{1}{2}\right)$"
        r" $\sum_{i=1}^N \alpha_i \leq 100\%,\; \sqrt{x} \approx \mathrm{softmax}(\mathcal{L}) \to \infty$"
    )
    assert r"\begin{pmatrix}" in answered(tmp_path, record, usual)
    for key, (path, text) in answers.answer_texts(record).items():
        for token in answers.tokens(text):
            if token.type.startswith("math"):
                assert formulas.for_latex(path, token.content), key


def test_code_cannot_end_its_listing(tmp_path, record):
    with pytest.raises(InputError, match=r"q06\.md: code that holds \\end\{lstlisting\}"):
        answered(tmp_path, record, "```\nx\n\\end{lstlisting}\\input{/etc/passwd}\n```")


def test_pictures_come_from_the_answers_folder_only(tmp_path, record):
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    (tmp_path / "answers").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "answers" / "inside.png")
    assert r"\includegraphics" in answered(tmp_path, record, "![in](inside.png)")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["picture-001.png"]
    for other in ("../secret.png", "http://127.0.0.1:9/x.png"):
        with pytest.raises(InputError, match=r"q06\.md: cannot show the picture"):
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
    assert names == {"0812345_Lab8_Homework.tex", "latexmkrc", "figures", "fonts"}
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
    from lab.bundle import staged

    folder = tmp_path / "1"
    (folder / "latex").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with staged(folder):
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
    message = report.write_latex(record, bundle.run, tmp_path / "latex")
    assert not list((tmp_path / "latex").glob("*.pdf"))
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


def sentences(page):
    """The text of a page in parts that no picture of a formula and no end of a paragraph interrupts."""
    body = re.sub(r"<img[^>]*>|</?(?:p|t[dh]|li|h\d|caption|figcaption|div|br|pre)\b[^>]*>", "\0", page)
    text = unescape(re.sub(r"<[^>]*>", "", body.partition("<main>")[2]))
    return (part for part in re.split(r"\0|(?<=[.:;,])\s", text) if part.strip())


def pdf_text(path):
    return "\n".join(page.extract_text() for page in PdfReader(path).pages)


@NEEDS_TEX
def test_it_compiles_without_a_warning_that_matters(record, bundle, tmp_path):
    changed = rename_class(record, "crazing", ODD)
    changed = rename_class(changed, "inclusion", "a_very_long_class_name_of_" + 3 * "unbroken" + "_царапины")
    changed.student.name = "Łukasz Имя"
    changed.results.passed = False
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
    text = pdf_text(folder / "0812345_Lab8_Homework.pdf")
    for sign in (
        "100%",
        "$x$",
        "--evaluate",
        '"b"',
        "`c`",
        "[d]",
        "<<e>>",
        "|f|",
    ):  # no ligature of two of them
        assert sign in text


@NEEDS_TEX
def test_the_compiled_report_says_what_the_other_pdf_says(record, bundle, tmp_path, capsys):
    folder, args = copied(bundle, tmp_path)
    assert run.main([*args, "--report-only", "--latex"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    path = folder / "latex" / "0812345_Lab8_Homework.pdf"
    assert str(path) in said.out.splitlines()
    names = {path.name for path in (folder / "latex").iterdir()}
    assert names == {path.name, f"{path.stem}.tex", "latexmkrc", "figures", "fonts"}

    ours, other = pdf_text(path), pdf_text(folder / "0812345_Lab8_Homework.pdf")
    asked = list(sentences((folder / "run" / "report.html").read_text(encoding="utf-8")))
    assert len(asked) > 700
    for text in (squeezed(ours), squeezed(other)):
        for sentence in asked:
            if squeezed(sentence) not in text:  # it may go on on the next page
                assert [word for word in sentence.split() if squeezed(word) not in text] == [], sentence
