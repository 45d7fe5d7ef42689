"""What stands before everything else: the Python, the packages, and a console that lacks letters."""

import ast
import json
import re
import shlex
import sys

import pytest
from conftest import ROOT, TINY_ARGS, make_folder, run_program

from lab import options, start

COMMANDS = [["run.py"], ["-m", "study"], ["-m", "verify"]]
COMMANDS += [
    [f"bench/{name}.py"]
    for name in ("classical", "datasets", "fuzz", "other_sets", "peers", "report_time", "seeds", "speed")
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_its_packages_a_command_says_in_one_line_how_to_install_them(command):
    process = run_program("-S", *command, cwd=ROOT, PYTHONPATH="")
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1, process.stderr
    assert "packages are missing (torch, torchvision, einops, torchinfo, ...)" in process.stderr
    assert "pip install -r requirements.txt" in process.stderr


def test_a_measurement_of_the_speed_benchmark_runs():
    process = run_program("bench/speed.py", "--measure", '["grown", 64, 28]', cwd=ROOT)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["value"]["images_per_second"] > 1 and found["peak_mb"] > 100


def test_every_package_of_the_list_is_looked_for(monkeypatch):
    assert start.missing_packages() == []
    monkeypatch.setattr(start, "find_spec", lambda name: None)
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if "tomli" not in line]
    assert [re.split(r"[>\[]", line)[0] for line in listed] == start.missing_packages()


def test_an_old_python_is_told_which_one_is_needed(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert start.fault().startswith("Python 3.10 or newer is needed, this is 3.")


@pytest.mark.parametrize("epoch", ["abc", "-1", "1e9", "9" * 20])
def test_a_date_that_is_none_is_told_before_numpy_reads_it(epoch):
    process = run_program("run.py", "--student-id", "1", cwd=ROOT, SOURCE_DATE_EPOCH=epoch)
    assert process.returncode == 2
    assert process.stderr == f"run.py: SOURCE_DATE_EPOCH={epoch!r} is not a number of seconds: unset it\n"


@pytest.mark.parametrize("file", ["run.py", "lab/start.py", "lab/__init__.py"])
def test_an_old_python_reads_the_files_that_tell_it_so(file):
    ast.parse((ROOT / file).read_text(), feature_version=(3, 6))
    for folder in ("study", "verify"):
        ast.parse((ROOT / folder / "__main__.py").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp950"])
def test_any_console_can_be_printed_to(encoding):
    text = "import lab, sys; print('Łä 裂纹🔥'); print('裂纹🔥', file=sys.stderr)"
    process = run_program("-c", text, cwd=ROOT, PYTHONIOENCODING=encoding)
    assert process.returncode == 0, process.stderr
    assert "\\U0001f525" in process.stdout and "\\U0001f525" in process.stderr


def test_a_console_that_lacks_letters_stops_no_run(tmp_path):
    images = make_folder(tmp_path / "圖", {"裂纹🔥": 6, "Łä": 6})
    args = ["--student-id", "1", "--name", "陳", "--data", images, *TINY_ARGS, "--set", "epochs=1"]
    process = run_program(ROOT / "run.py", *args, cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert process.returncode == 0, process.stderr
    assert "Test accuracy" in process.stdout
    (tmp_path / "dataset").symlink_to(images)
    code = tmp_path / "outputs" / "1" / "1_Lab8_Homework.py"
    process = run_program(code, "--evaluate", cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert process.returncode == 0, process.stderr
    assert "\\u88c2\\u7eb9" in process.stdout


def test_the_readme_s_commands_have_flags_that_there_are():
    """Also those for Colab, which no test runs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?m)^(?:!|\S*/)?python\d? (?:\w+/)?run\.py (.*?)(?: {2,}.*| +#.*)?$", text)
    assert any("{data}" in command for command in commands)
    assert len(commands) >= 3
    for command in commands:
        options.parse_options(shlex.split(command))
