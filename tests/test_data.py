import io
import json
import os
import random
import socket
import stat
import struct
import warnings
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import make_folder, striped, zip_folder
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

import data
from recipe import InputError, Recipe

RECIPE = Recipe(image_size=32, patch_size=8)


def names(files):
    return {label: list(members) for label, members in files.items()}


def write(path, seed=0, kind=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    striped(kind, seed).save(path)


# Finding the classes


@pytest.mark.parametrize("wrapper", ["", "NEU-CLS/", "a/b/"])
def test_class_folders_are_found_at_the_top_and_under_wrappers(tmp_path, wrapper):
    make_folder(tmp_path / wrapper, {"rust": 2, "scratch": 3})
    found = names(data.find_images(tmp_path))
    assert found == {
        "rust": ["rust_1.png", "rust_2.png"],
        "scratch": ["scratch_1.png", "scratch_2.png", "scratch_3.png"],
    }


@pytest.mark.parametrize("held_out", ["validation", "val", "test", "Valid"])
def test_a_ready_made_split_is_pooled(tmp_path, held_out):
    for seed, (side, name) in enumerate([("train", "1"), ("train", "2"), (held_out, "3")]):
        for label in ("rust", "scratch"):
            write(tmp_path / "data" / side / label / f"{name}.png", seed)
    found = names(data.find_images(tmp_path))
    assert found == {label: ["1.png", "2.png", "3.png"] for label in ("rust", "scratch")}


def test_pooled_files_of_one_name_are_all_kept(tmp_path):
    for seed, side in enumerate(("train", "test")):
        for label in ("rust", "scratch"):
            write(tmp_path / side / label / "1.png", seed)
    found = names(data.find_images(tmp_path))
    assert found["rust"] == ["test-rust-1.png", "train-rust-1.png"]


def test_neu_det_layout_with_an_images_folder(tmp_path):
    for side in ("train", "validation"):
        for label in ("crazing", "patches"):
            write(tmp_path / "NEU-DET" / side / "images" / label / f"{label}_{side}.jpg")
    assert set(data.find_images(tmp_path)) == {"crazing", "patches"}


def test_flat_files_carry_their_class_in_the_name(tmp_path):
    for name in ("crazing_1.jpg", "crazing_12.jpg", "Cr_12.bmp", "Cr_3.bmp"):
        write(tmp_path / name)
    for name in ("rolled-in_scale_7.png", "rolled-in_scale_8.png", "rust (1).png", "rust (2).png"):
        write(tmp_path / "images" / name)
    (tmp_path / "images").rename(tmp_path / "train")  # flat inside a ready-made split, too
    assert {label: len(files) for label, files in data.find_images(tmp_path).items()} == {
        "Cr": 2,
        "crazing": 2,
        "rolled-in_scale": 2,
        "rust": 2,
    }


def test_what_operating_systems_leave_behind_is_ignored(tmp_path):
    make_folder(tmp_path / "d", {"a": 2, "b": 2})
    for junk in (
        "__MACOSX/d/a/._a_1.png",
        "d/a/.DS_Store",
        "d/a/Thumbs.db",
        "d/a/._a_1.png",
        "readme.txt",
    ):
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    assert names(data.find_images(tmp_path)) == {
        "a": ["a_1.png", "a_2.png"],
        "b": ["b_1.png", "b_2.png"],
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no images"),
        (["a/1.png", "a/2.png"], "found no two classes"),
        (["a/1.png", "a/2.png", "b/1.png"], "class 'b' has a single image"),
        (["one.png", "two.png"], "found no two classes"),
    ],
)
def test_data_without_two_classes_of_two_images_is_refused(tmp_path, files, message):
    for file in files:
        write(tmp_path / file)
    with pytest.raises(InputError, match=message):
        data.find_images(tmp_path)


# Folders with more in them than images


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    make_folder(tmp_path / "elsewhere", {"rust": 3})
    make_folder(tmp_path / "d", {"a": 2, "b": 2})
    (tmp_path / "d" / "rust").symlink_to(tmp_path / "elsewhere" / "rust")
    (tmp_path / "d" / "a" / "round").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "again").symlink_to(tmp_path / "d" / "b")
    (tmp_path / "d" / "b" / "itself.png").symlink_to("itself.png")
    found = names(data.find_images(tmp_path / "d"))
    assert found == {
        "a": ["a_1.png", "a_2.png"],
        "b": ["b_1.png", "b_2.png", "itself.png"],  # reading will tell
        "rust": ["rust_1.png", "rust_2.png", "rust_3.png"],
    }


def test_what_only_has_an_images_name_is_left_out_and_listed(tmp_path):
    folder = make_folder(tmp_path / "d", {"a": 50, "b": 50})
    os.mkfifo(folder / "a" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        home = os.getcwd()
        os.chdir(folder / "a")  # a socket's path may not be long
        listener.bind("socket.png")
        os.chdir(home)
    (folder / "b" / "device.png").symlink_to("/dev/zero")
    (folder / "b" / "gone.png").symlink_to("nowhere.png")
    (folder / "b" / "folder.png").mkdir()
    pictures, unreadable = data.load_pictures(data.find_images(folder), 16, 1, tmp_path)
    assert len(pictures) == 100
    assert [(path.name, reason.partition(":")[0]) for path, reason in unreadable] == [
        ("pipe.png", "OSError"),
        ("socket.png", "OSError"),
        ("device.png", "OSError"),
        ("gone.png", "FileNotFoundError"),
    ]
    assert unreadable[0][1] == "OSError: it is no regular file"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"images": 29}, r"images holds 30 images, more than 29: if that is right, add --limit images=30"),
        ({"image_mb": 0.0001}, r"'crazing/crazing_1\.png' in .*images has 0 MB .* --limit image_mb=1"),
    ],
)
def test_folders_have_the_limits_of_zips(tmp_path, images, limits, message):
    data.open_source(images, tmp_path, data.Limits(images=30))
    with pytest.raises(InputError, match=message):
        data.open_source(images, tmp_path, data.Limits(**limits))


def test_a_folder_that_can_not_be_read_is_named_and_not_passed_over(tmp_path, images, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("patches"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(data.os, "scandir", closed)
    with pytest.raises(
        InputError, match=r"can't read the folder .*patches \(Permission denied\): give access"
    ):
        data.find_images(images)


def test_an_image_that_went_away_after_it_was_read_stops_the_run_before_training(
    tmp_path, images, monkeypatch
):
    split_names = data.split_names

    def split_and_lose(*args):
        (images / "patches" / "patches_10.png").unlink()
        return split_names(*args)

    monkeypatch.setattr(data, "split_names", split_and_lose)
    with pytest.raises(InputError, match=r"patches_10\.png went away while the images were read"):
        data.load_data(images, tmp_path / "split", RECIPE)


# Zips


def test_zip_is_unpacked_without_what_is_no_image(tmp_path, images):
    (images / "readme.txt").write_text("hello")
    data.unzip(zip_folder(images, tmp_path / "d.zip"), tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 30
    assert not list((tmp_path / "out").rglob("*.txt"))


def test_a_zip_can_not_write_outside_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("../../evil.png", b"x")
        archive.writestr("/tmp/evil_absolute_path.png", b"x")
    data.unzip(tmp_path / "d.zip", tmp_path / "deep" / "er" / "out")
    outside = [p for p in tmp_path.rglob("*.png") if "out" not in p.relative_to(tmp_path).parts]
    assert outside == []
    assert not os.path.exists("/tmp/evil_absolute_path.png")


def test_broken_zips_are_refused_and_leave_nothing(tmp_path, images):
    good = zip_folder(images, tmp_path / "d.zip").read_bytes()
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "cut.zip").write_bytes(good[: len(good) // 2])
    flipped = bytearray(good)
    flipped[200] ^= 0xFF  # inside the first image: its checksum no longer fits
    (tmp_path / "flipped.zip").write_bytes(flipped)
    for name in ("text.zip", "cut.zip", "flipped.zip"):
        with pytest.raises(InputError, match=rf"can't read .*{name} as a zip"):
            data.unzip(tmp_path / name, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def png(seed):
    content = io.BytesIO()
    striped(0, seed).save(content, "PNG")
    return content.getvalue()


def zip_with(path, more):
    """A zip of two classes of three images, and what `more(archive)` adds."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of the duplicate name
        for i in range(6):
            archive.writestr(f"{'ab'[i % 2]}/{i}.png", png(i))
        more(archive)
    return path


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (lambda z: z.writestr("a/0.png", png(9)), "'a/0.png' twice"),
        (lambda z: z.writestr("a/0.PNG", png(9)), "'a/0.png' and 'a/0.PNG', one file on many systems"),
        (lambda z: [z.writestr(f"B/{i}.png", png(i)) for i in (7, 8)], "'B' and 'b' differ only in case"),
        (lambda z: z.writestr("a/big.png", bytes(1_100_000)), "'a/big.png' .* 1 MB .* --limit image_mb=2"),
        (lambda z: [z.writestr(f"a/1{i}.png", b"") for i in range(5)], "11 images, more than 10"),
        (lambda z: [z.writestr(f"a/1{i}.png", bytes(900_000)) for i in range(3)], "--limit total_gb=1"),
        (lambda z: z.writestr("a/\x1b[2J.png", png(9)), "has control characters"),
        (lambda z: z.writestr("a/\u202egnp.png", png(9)), "control characters"),
        (lambda z: z.writestr("a/" + 300 * "x" + ".png", png(9)), "File name too long.*give the folder"),
        (lambda z: z.writestr("a/0.png/1.png", png(9)), "can't unpack"),
    ],
)
def test_zips_that_are_too_much_or_ambiguous_are_refused(tmp_path, more, message):
    limits = data.Limits(images=10, image_mb=1, total_gb=0.002)
    path = zip_with(tmp_path / "x.zip", more)
    with pytest.raises(InputError, match=message):
        data.find_images(data.open_source(path, tmp_path / "run", limits).folder)


def test_a_zip_of_nothing_but_a_zip_says_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("inner.zip", b"")
    with pytest.raises(InputError, match=r"holds no images but 'inner.zip'"):
        data.open_source(tmp_path / "x.zip", tmp_path / "run")


def test_a_name_that_is_no_utf_8_is_refused_in_a_folder(tmp_path, images):
    try:
        os.rename(next(images.rglob("*.png")), os.fsencode(images) + b"/patches/\xff.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(InputError, match=r"'patches/\\udcff.png' has control characters or is no UTF-8"):
        data.find_images(images)


def test_letters_of_all_scripts_are_class_names(tmp_path):
    names = ["刮痕 😀", "שריטות", "царапины", "<b>{{ 7 }}\\textbf"]
    assert sorted(data.find_images(make_folder(tmp_path, dict.fromkeys(names, 2)))) == sorted(names)


def test_source_is_dataset_zip_then_dataset_folder_then_drawn_images(tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(data.synthetic, "DEFAULT_PER_CLASS", 3, raising=True)
    drawn = data.open_source(None, run)
    assert drawn.kind == "demonstration"
    assert sorted(data.find_images(drawn.folder)) == sorted(data.synthetic.CLASSES)
    (tmp_path / "dataset").mkdir()
    assert data.open_source(None, run) == (data.Path("dataset"), "folder", "dataset")
    zip_folder(images, tmp_path / "dataset.zip")
    data.shutil.rmtree(run / "dataset")
    assert data.open_source(None, run) == (run / "dataset", "zip", "dataset.zip")


def test_missing_data_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--data nowhere\.zip: there is no such"):
        data.open_source("nowhere.zip", tmp_path)


# Decoding


def test_pictures_are_resized_as_torchvision_does(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    reference = transforms.Compose([transforms.Grayscale(), transforms.Resize((28, 28))])
    expected = np.asarray(reference(Image.open(tmp_path / "x.png")))
    picture = data.load_picture(tmp_path / "x.png", 28, 1)
    assert picture.pixels.shape == (1, 28, 28)
    np.testing.assert_array_equal(picture.pixels[0], expected)
    assert (picture.size, picture.mode) == ((70, 50), "RGB")
    assert data.load_picture(tmp_path / "x.png", 28, 3).pixels.shape == (3, 28, 28)


MODES = {
    ".png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    ".TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
    ".tif": ["L"],
    ".bmp": ["1", "L", "P", "RGB", "RGBA"],
    ".jpg": ["1", "L", "RGB", "CMYK"],
    ".JPEG": ["L"],
}


@pytest.mark.parametrize(("suffix", "mode"), [(s, m) for s, modes in MODES.items() for m in modes])
def test_all_formats_and_modes_are_read(tmp_path, suffix, mode):
    grey = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert(mode)
    image.save(tmp_path / f"x{suffix}")
    pixels = data.load_picture(tmp_path / f"x{suffix}", 32, 1).pixels[0].astype(float)
    assert pixels[:, -6:].mean() - pixels[:, :6].mean() > 150  # dark on the left, bright on the right


def test_16_bit_images_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 16448], [32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    np.testing.assert_array_equal(
        data.load_picture(tmp_path / "x.png", 2, 1).pixels[0], [[0, 64], [128, 255]]
    )


def test_exif_rotation_is_undone(tmp_path):
    image = Image.fromarray(np.array([[0, 0], [255, 255]], dtype=np.uint8).repeat(16, 0).repeat(16, 1))
    exif = Image.Exif()
    exif[274] = 6  # the camera lay on its side: turn by a quarter, clockwise
    image.save(tmp_path / "x.png", exif=exif)
    pixels = data.load_picture(tmp_path / "x.png", 32, 1).pixels[0]
    assert pixels[:, 0].mean() == 255
    assert pixels[:, -1].mean() == 0


def test_a_few_unreadable_files_are_left_out_and_many_stop(tmp_path):
    make_folder(tmp_path, {"a": 20, "b": 20})
    (tmp_path / "a" / "a_3.png").write_bytes(b"")
    (tmp_path / "b" / "b_4.png").write_text("no image")
    pictures, unreadable = data.load_pictures(data.find_images(tmp_path), 16, 1, tmp_path)
    assert len(pictures) == 38
    assert [path.name for path, _ in unreadable] == ["a_3.png", "b_4.png"]
    (tmp_path / "b" / "b_5.png").write_text("no image")
    with pytest.raises(InputError, match="3 of 40 images can't be read"):
        data.load_pictures(data.find_images(tmp_path), 16, 1, tmp_path)


def test_images_too_many_for_the_memory_are_kept_on_disk_and_trained_on_alike(tmp_path, images, monkeypatch):
    in_memory = data.load_data(images, tmp_path / "split", RECIPE)
    monkeypatch.setattr(data, "memory_size", lambda: 0)
    on_disk = data.load_data(images, tmp_path / "split", RECIPE)
    assert isinstance(next(iter(on_disk.pictures.values())).pixels.base, np.memmap)
    assert on_disk.train.files == in_memory.train.files
    for first, second in zip(
        *(data.make_loaders(d, RECIPE, torch.device("cpu"))[0] for d in (in_memory, on_disk))
    ):
        assert torch.equal(first[0], second[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "split"]


def test_no_room_for_the_pixels_anywhere_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "memory_size", lambda: 0)
    with pytest.raises(InputError, match=r"GB of pixels fit neither in memory nor in .*smaller image_size"):
        data.pixel_store((1, 1 << 62), tmp_path)


# The split


def unlike(count, prefix="x"):
    """Names of `count` images, all different."""
    return {f"{prefix}_{i}.png": f"{prefix}{i}" for i in range(1, count + 1)}


def test_split_is_the_seeded_shuffle_of_the_sorted_names():
    digests = {"a": unlike(300), "b": unlike(10, "y")}
    split = data.split_names(digests)
    expected = sorted(digests["a"])
    random.Random(42).shuffle(expected)
    assert set(split["train"]["a"]) == set(expected[:210])
    assert set(split["test"]["a"]) == set(expected[210:])
    assert [len(split[side]["b"]) for side in ("train", "test")] == [7, 3]


def test_split_does_not_depend_on_the_order_of_files():
    digests = {"a": unlike(57), "b": unlike(31, "y")}
    backwards = {k: dict(reversed(v.items())) for k, v in reversed(digests.items())}
    assert data.split_names(digests) == data.split_names(backwards)
    assert data.split_names(digests) != data.split_names(digests, seed=7)


@pytest.mark.parametrize(("count", "train"), [(2, 1), (3, 2), (4, 2), (9, 6), (10, 7), (100, 70), (190, 133)])
def test_the_cut_is_in_whole_numbers(count, train):
    split = data.split_names({"a": unlike(count)})
    assert len(split["train"]["a"]) == train
    assert len(split["test"]["a"]) == count - train


@pytest.mark.parametrize("seed", range(20))
def test_copies_take_the_same_side_and_the_sizes_hold(seed):
    digests = {"a": unlike(100), "b": unlike(50, "y")}
    for first, second in ((1, 2), (10, 90), (33, 34)):
        digests["a"][f"x_{first}.png"] = digests["a"][f"x_{second}.png"]
    digests["b"]["y_7.png"] = digests["a"]["x_5.png"]  # across classes
    split = data.split_names(digests, seed)
    of = {side: {digests[c][n] for c in "ab" for n in split[side][c]} for side in split}
    assert not of["train"] & of["test"]
    assert len(split["train"]["a"]) == 70
    assert len(split["train"]["b"]) == 35


def test_image_folder_opens_the_written_split(tmp_path, images):
    loaded = data.load_data(images, tmp_path / "split", RECIPE)
    for side, part in (("train", loaded.train), ("test", loaded.test)):
        folder = ImageFolder(tmp_path / "split" / side)
        assert folder.classes == loaded.classes
        assert folder.targets == part.labels.tolist()
        assert [f"{data.Path(p).parent.name}/{data.Path(p).name}" for p, _ in folder.samples] == part.files
        pixels = np.asarray(folder[0][0].convert("L").resize((32, 32), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(part.images[0, 0], pixels)
    written = json.loads((tmp_path / "split" / "split.json").read_text())
    assert {side: Counter(map(len, written[side].values())) for side in ("train", "test")} == {
        "train": {7: 3},
        "test": {3: 3},
    }
    assert written["seed"] == 42


def test_the_split_links_to_the_images_and_leaves_them_alone(tmp_path, images):
    before = {p: p.read_bytes() for p in images.rglob("*.png")}
    data.load_data(images, tmp_path / "split", RECIPE)
    data.load_data(images, tmp_path / "split", RECIPE)  # a second run replaces our own split
    assert {p: p.read_bytes() for p in images.rglob("*.png")} == before
    placed = next((tmp_path / "split" / "train").rglob("*.png"))
    assert os.stat(placed)[stat.ST_NLINK] == 2


def test_a_split_folder_of_somebody_else_is_not_touched(tmp_path, images):
    (tmp_path / "split").mkdir()
    with pytest.raises(InputError, match="was not written here"):
        data.load_data(images, tmp_path / "split", RECIPE)


def test_copies_and_unreadable_files_are_on_record(tmp_path, images):
    names = [f"crazing/crazing_{i}.png" for i in (3, 8)]
    (images / names[1]).write_bytes((images / names[0]).read_bytes())
    make_folder(images, {"crazing": 0, "inclusion": 0, "patches": 21})
    (images / "patches" / "patches_21.png").write_bytes(b"")
    facts = data.describe_data(data.load_data(images, tmp_path / "split", RECIPE), RECIPE)
    assert facts["same_pixels"] == {"groups": 1, "files": names}
    assert [u["file"] for u in facts["unreadable"]] == ["patches_21.png"]
    assert facts["counts"]["train"] == {"crazing": 7, "inclusion": 7, "patches": 14}
    assert facts["sizes"] == [("40 x 40", 40)]


# Batches


def split_of(count, side=8):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8)
    return data.Split(pixels, torch.arange(count), [str(i) for i in range(count)])


def test_loader_gives_every_image_once_and_shuffles_anew():
    loader = data.BatchLoader(split_of(10), 4, torch.device("cpu"), standardize=True, seed=1)
    epochs = [torch.cat([labels for _, labels in loader]).tolist() for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert len(loader) == 3
    again = data.BatchLoader(split_of(10), 4, torch.device("cpu"), standardize=True, seed=1)
    assert torch.cat([labels for _, labels in again]).tolist() == epochs[0]


def test_test_batches_are_the_images_as_they_are():
    part = split_of(5)
    loader = data.BatchLoader(part, 2, torch.device("cpu"), standardize=False)
    batches = torch.cat([images for images, _ in loader])
    reference = transforms.Normalize((0.5,), (0.5,))(part.images / 255)  # the template's
    torch.testing.assert_close(batches, reference)


def test_standardised_images_ignore_brightness_and_contrast():
    image = torch.rand(1, 1, 16, 16)
    pair = torch.cat([image, image * 0.5 + 0.2])
    bright, dim = data.normalize(pair, True)
    torch.testing.assert_close(bright, dim, atol=2e-2, rtol=0)
    assert abs(float(bright.mean())) < 1e-5
    assert float(bright.std()) == pytest.approx(1, abs=0.01)
    assert torch.isfinite(data.normalize(torch.zeros(1, 1, 4, 4), True)).all()


def test_flips_and_transposition_give_the_eight_symmetries_image_by_image():
    image = torch.arange(9.0).reshape(1, 1, 3, 3) / 9
    generator = torch.Generator().manual_seed(0)
    batch = data.augment(image.repeat(400, 1, 1, 1), generator, flip=True, transpose=True)
    eight = {
        tuple(torch.rot90(x, k, (-2, -1)).flatten().tolist()) for k in range(4) for x in (image, image.mT)
    }
    counts = Counter(tuple(x.flatten().tolist()) for x in batch)
    assert set(counts) == eight
    assert min(counts.values()) > 20


def test_shifts_move_by_up_to_the_share_and_mirror_the_edge():
    image = torch.arange(100.0).reshape(1, 1, 1, 100).expand(1, 1, 100, 100) / 100
    generator = torch.Generator().manual_seed(0)
    batch = data.augment(image.repeat(200, 1, 1, 1), generator, crop=0.1)
    shifts = (batch[:, 0, 50, 50] * 100).round() - 50
    assert set(shifts.int().tolist()) == set(range(-10, 11))
    assert batch.min() >= 0
    assert batch.shape == (200, 1, 100, 100)


def test_brightness_and_contrast_stay_in_range_and_differ_by_image():
    images = torch.rand(50, 1, 8, 8)
    changed = data.augment(images, torch.Generator().manual_seed(0), brightness=0.3, contrast=0.3)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed - images).mean((1, 2, 3)).std() > 0.05


def test_mixup_blends_images_and_targets_by_the_same_share():
    images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 1, 4, 4)  # pixels are the image's number
    mixed, targets = data.mixup(images, torch.eye(8), 0.4, np.random.default_rng(0))
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets @ torch.arange(8.0))
    assert (targets.max(1).values < 1).any()


def test_mixup_gives_training_batches_shares_and_leaves_test_batches_alone(tmp_path, images):
    recipe = Recipe(image_size=32, patch_size=8, mixup=0.4)
    train, test = data.make_loaders(
        data.load_data(images, tmp_path / "split", recipe), recipe, torch.device("cpu")
    )
    (_, shares), (_, numbers) = next(iter(train)), next(iter(test))
    assert shares.shape == (21, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(21))
    assert numbers.tolist() == sorted(numbers.tolist())


def test_without_changes_nothing_is_drawn():
    images, generator = torch.rand(3, 1, 8, 8), torch.Generator().manual_seed(0)
    state = generator.get_state()
    torch.testing.assert_close(data.augment(images, generator), images)
    assert torch.equal(generator.get_state(), state)


def test_a_damaged_image_is_listed_and_its_decoder_says_nothing_beside(tmp_path, caplog):
    folder = make_folder(tmp_path / "d", {"a": 30, "b": 30})
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "TIFF")
    content = bytearray(content.getvalue())
    (start,) = struct.unpack("<I", content[4:8])
    (tags,) = struct.unpack("<H", content[start : start + 2])
    for at in range(start + 2, start + 2 + 12 * tags, 12):
        if struct.unpack("<H", content[at : at + 2]) == (277,):  # samples per pixel
            content[at + 8 : at + 10] = struct.pack("<H", 259)
    (folder / "a" / "odd.tif").write_bytes(content)
    loaded = data.load_data(folder, tmp_path / "split", RECIPE)
    assert [path.name for path, _ in loaded.unreadable] == ["odd.tif"]
    assert caplog.records == []


def test_a_zip_entry_without_a_name_is_passed_over(tmp_path):
    zip_path = zip_folder(make_folder(tmp_path / "d", {"a": 3, "b": 3}), tmp_path / "d.zip")
    with zipfile.ZipFile(zip_path, "a") as archive:
        archive.writestr("NAME", "x")
    zip_path.write_bytes(zip_path.read_bytes().replace(b"NAME", b"\0AME"))  # read up to the null byte: empty
    data.unzip(zip_path, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 6
