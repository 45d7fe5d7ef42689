import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

from lab import synthetic

ASSIGNMENTS = ["crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches"]


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn") / "d.zip"
    synthetic.write_dataset(path, per_class=40)
    return path


@pytest.fixture(scope="module")
def images(drawn):
    """The pixels (240, 200, 200) of 40 images of each class, and their classes (240)."""
    files = contents(drawn)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in files.values()])
    return pixels, np.array([name.split("/")[0] for name in files])


def test_zip_holds_grey_pngs_all_different(drawn):
    files = contents(drawn)
    assert list(synthetic.CLASSES) == ASSIGNMENTS
    assert sorted(files) == sorted(f"{c}/{c}_{n}.png" for c in ASSIGNMENTS for n in range(1, 41))
    images = [Image.open(io.BytesIO(png)) for png in files.values()]
    assert {(i.format, i.mode, i.size) for i in images} == {("PNG", "L", (200, 200))}
    assert len({image.tobytes() for image in images}) == 240


def test_zip_is_known_as_drawn_and_carries_no_date(drawn):
    with zipfile.ZipFile(drawn) as archive:
        assert archive.comment == synthetic.MARK
        about = {(entry.date_time, entry.compress_type) for entry in archive.infolist()}
    assert about == {((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)}


def test_same_seed_same_bytes_other_seed_other_images(tmp_path):
    first, again, other = (tmp_path / name for name in ("first.zip", "again.zip", "other.zip"))
    synthetic.write_dataset(first, per_class=2, seed=3)
    synthetic.write_dataset(again, per_class=2, seed=3)
    synthetic.write_dataset(other, per_class=2, seed=4)
    assert first.read_bytes() == again.read_bytes()
    assert not set(contents(first).values()) & set(contents(other).values())


def test_an_image_does_not_depend_on_how_many_there_are(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "DEFAULT_PER_CLASS", 2)
    synthetic.write_dataset(tmp_path / "few.zip")
    few, many = contents(tmp_path / "few.zip"), contents(drawn)
    assert len(few) == 12
    assert all(many[name] == png for name, png in few.items())


def test_grey_levels_do_not_give_the_class_away(images):
    pixels, labels = images
    half = np.arange(240) % 2 == 0
    levels = StandardScaler().fit_transform(np.stack([pixels.mean((1, 2)), pixels.std((1, 2))], 1))
    histogram = np.array([np.bincount(image.ravel() // 8, minlength=32) for image in pixels])
    for features, model, most in (  # chance: 0.17
        (levels, NearestCentroid(), 0.4),
        (levels, LogisticRegression(max_iter=2000), 0.4),
        (histogram, NearestCentroid(), 0.5),
    ):
        model.fit(features[half], labels[half])
        assert model.score(features[~half], labels[~half]) < most


@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", ["old", None])
def test_a_fault_while_writing_leaves_the_folder_as_it_was(tmp_path, monkeypatch, fault, old):
    path = tmp_path / "d.zip"
    if old:
        path.write_text(old)
    draw, calls = synthetic.draw, []

    def fail_in_the_middle(class_name, rng):
        calls.append(class_name)
        if len(calls) > 3:
            raise fault
        return draw(class_name, rng)

    monkeypatch.setattr(synthetic, "draw", fail_in_the_middle)
    with pytest.raises(type(fault)):
        synthetic.write_dataset(path, per_class=2)
    left = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert left == ({"d.zip": old} if old else {})
