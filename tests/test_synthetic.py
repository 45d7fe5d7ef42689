import io
import zipfile

import numpy as np
import pytest
from conftest import ROOT, run_program
from PIL import Image
from sklearn.linear_model import LogisticRegression

import synthetic

ASSIGNMENTS = ["crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches"]


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn") / "d.zip"
    synthetic.write_dataset(path, per_class=12)
    return path


def test_zip_holds_the_assignments_classes_as_grey_images_all_different(drawn):
    files = contents(drawn)
    assert sorted(files) == sorted(f"{c}/{c}_{n}.png" for c in ASSIGNMENTS for n in range(1, 13))
    images = [Image.open(io.BytesIO(png)) for png in files.values()]
    assert {(image.mode, image.size) for image in images} == {("L", (200, 200))}
    assert len({image.tobytes() for image in images}) == 72


def test_same_seed_same_bytes_and_images_do_not_depend_on_their_number(drawn, tmp_path):
    synthetic.write_dataset(tmp_path / "again.zip", per_class=12)
    assert (tmp_path / "again.zip").read_bytes() == drawn.read_bytes()
    synthetic.write_dataset(tmp_path / "few.zip", per_class=2)
    few, many = contents(tmp_path / "few.zip"), contents(drawn)
    assert all(many[name] == png for name, png in few.items())
    synthetic.write_dataset(tmp_path / "other.zip", per_class=2, seed=1)
    assert not set(contents(tmp_path / "other.zip").values()) & set(few.values())


def test_brightness_and_contrast_do_not_give_the_class_away():
    rng = np.random.default_rng(0)
    images = [synthetic.draw(c, rng) for c in ASSIGNMENTS for _ in range(40)]
    labels = np.repeat(np.arange(6), 40)
    features = np.array([[i.mean(), i.std(), i.min(), i.max()] for i in images]) / 100
    half = np.arange(240) % 2 == 0
    model = LogisticRegression(max_iter=2000).fit(features[half], labels[half])
    assert model.score(features[~half], labels[~half]) < 0.45  # chance: 0.17


def test_a_fault_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "d.zip"
    path.write_text("old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(synthetic, "_png", fail)
    with pytest.raises(OSError, match="disk full"):
        synthetic.write_dataset(path, per_class=1)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["d.zip"]


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no class is called 'rust'"):
        synthetic.draw("rust", np.random.default_rng(0))
    process = run_program(ROOT / "synthetic.py", tmp_path / "d.zip", "--per-class", "0", cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "synthetic.py: at least 1 image for each class is needed, not 0\n"
    process = run_program(ROOT / "synthetic.py", tmp_path / "no" / "d.zip", cwd=tmp_path)
    assert process.returncode == 2
    assert list(tmp_path.iterdir()) == []
