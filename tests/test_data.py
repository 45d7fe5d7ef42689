import io
import json
import os
import random
import shutil
import socket
import stat
import struct
import tarfile
import warnings
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_folder, striped, zip_folder
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

import data
from lab import archives, files, intake, layout, machine
from lab.errors import InputError
from lab.limits import LIMITS, Limits
from lab.recipe import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(image_size=32, patch_size=8)
PLAIN = {"flip": False, "transpose": False, "crop": 0.0, "mixup": 0.0}


def read(folder, target, recipe=RECIPE):
    """The intake.Images of a folder, their split written to `target`."""
    return intake.read_images(intake.Source(folder, "folder", folder.name), recipe, target)


def unreadable(images):
    return [(entry.file, entry.reason) for entry in images.facts.unreadable]


# Finding the classes

LAYOUTS = [  # (paths, "class/name" of those that are found)
    ("a/1.png, a/2.png, b/1.png", "a/1.png, a/2.png, b/1.png"),
    ("NEU-CLS/a/1.png, NEU-CLS/b/1.png", "a/1.png, b/1.png"),
    ("x/y/a/1.png, x/y/b/1.png", "a/1.png, b/1.png"),
    # A ready-made split is pooled, and files of one name are all kept.
    *(
        (f"d/train/a/1.png, d/train/b/2.png, d/{side}/b/1.png", "a/1.png, b/1.png, b/2.png")
        for side in ("val", "validation", "test", "Valid")),
    ("train/a/1.png, train/b/2.png, test/a/1.png", "a/test-a-1.png, a/train-a-1.png, b/2.png"),
    ("NEU-DET/train/images/a/1.jpg, NEU-DET/validation/images/b/2.jpg", "a/1.jpg, b/2.jpg"),
    # Flat files carry their class in the name.
    ("cr_1.jpg, cr_12.jpg, Cr_3.bmp", "Cr/Cr_3.bmp, cr/cr_1.jpg, cr/cr_12.jpg"),
    ("train/rolled-in_scale_7.png, rust (1).png", "rolled-in_scale/rolled-in_scale_7.png, rust/rust (1).png"),
    # What operating systems leave behind is ignored.
    ("__MACOSX/d/a/._1.png, d/a/.DS_Store, d/a/Thumbs.db, d/a/._1.png, d/a/1.png, d/b/1.png, readme.txt",
     "a/1.png, b/1.png"),
]  # fmt: skip


@pytest.mark.parametrize(("paths", "expected"), LAYOUTS)
def test_classes_are_found_by_the_core_alone_and_among_the_labs_paths(tmp_path, paths, expected):
    for path in map(tmp_path.joinpath, paths.split(", ")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    images = data.find_images(tmp_path)
    walked = [tmp_path / path for path in layout.walk(tmp_path, defaultdict(list))]
    listed = [path for path in walked if path.suffix.lower() in data.IMAGE_SUFFIXES]
    assert images == data.find_images(tmp_path, listed[::-1]) == sorted(images)
    assert all(path.is_file() for _, _, path in images)
    assert ", ".join(f"{label}/{name}" for label, name, _ in images) == expected


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a/1.svg", "b/1.svg"], "no images in .*convert them to JPEG or PNG"),
        (["a/1.png", "a/2.png"], "no two classes in "),
        (["a/1.png", "a/2.png", "b/1.png"], "class 'b' has too few different images for two sides"),
        (["one.png", "two.png"], "no two classes in "),
    ],
)
def test_data_without_two_classes_of_two_images_is_refused(tmp_path, paths, message):
    for seed, path in enumerate(map((tmp_path / "d").joinpath, paths)):
        path.parent.mkdir(parents=True, exist_ok=True)
        striped(0, seed).save(path, "PNG")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "d", tmp_path / "split")


# Folders with more in them than images


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    make_folder(tmp_path / "elsewhere", {"rust": 3})
    make_folder(tmp_path / "d", {"a": 2, "b": 2})
    (tmp_path / "d" / "rust").symlink_to(tmp_path / "elsewhere" / "rust")
    (tmp_path / "d" / "a" / "round").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "again").symlink_to(tmp_path / "d" / "b")
    (tmp_path / "d" / "b" / "itself.png").symlink_to("itself.png")
    walked = layout.walk(tmp_path / "d", defaultdict(list))
    found = data.find_images(tmp_path / "d", [tmp_path / "d" / path for path in walked])
    # Of itself.png reading will tell.
    expected = ["a_1.png", "a_2.png", "b_1.png", "b_2.png", "itself.png"]
    assert [name for _, name, _ in found] == [*expected, "rust_1.png", "rust_2.png", "rust_3.png"]


def test_what_only_has_an_images_name_is_left_out_and_listed(tmp_path):
    folder = make_folder(tmp_path / "d", {"a": 50, "b": 50})
    os.mkfifo(folder / "a" / "pipe.png")
    os.mkfifo(folder / "a" / "a.png")  # the first, of which is asked whether the images have colours
    with socket.socket(socket.AF_UNIX) as listener:
        home = os.getcwd()
        os.chdir(folder / "a")  # a socket's path may not be long
        listener.bind("socket.png")
        os.chdir(home)
    (folder / "b" / "device.png").symlink_to("/dev/zero")
    (folder / "b" / "gone.png").symlink_to("nowhere.png")
    (folder / "b" / "folder.png").mkdir()
    images = read(folder, tmp_path / "split")
    assert len(images.train) + len(images.test) == 100
    reasons = {name: reason.partition(":")[0] for name, reason in unreadable(images)}
    assert reasons.pop("b/gone.png") == "FileNotFoundError"
    assert reasons == dict.fromkeys(("a/a.png", "a/pipe.png", "a/socket.png", "b/device.png"), "OSError")
    assert unreadable(images)[0][1] == "OSError: it is not a regular file"


def test_folders_have_the_limits_of_zips(tmp_path, images):
    intake.open_source(images, tmp_path, Limits(images=30))
    with pytest.raises(InputError, match=r"images holds 30 files, more than 29: .*, add --limit images=30"):
        intake.open_source(images, tmp_path, Limits(images=29))
    with pytest.raises(InputError, match=r"'crazing/crazing_1\.png' in .* 0 MB .* --limit image_mb=1"):
        intake.open_source(images, tmp_path, Limits(image_mb=0.0001))


def test_a_folder_that_can_not_be_read_is_named_and_not_passed_over(tmp_path, images, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("patches"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(layout.os, "scandir", closed)
    with pytest.raises(InputError, match=r"cannot read the folder .*patches \(Permission denied\): give"):
        intake.open_source(images, tmp_path)


def test_an_image_that_went_away_after_it_was_read_stops_the_run(tmp_path, images, monkeypatch):
    choose_sides = data.choose_sides

    def split_and_lose(*args):
        (images / "patches" / "patches_10.png").unlink()
        return choose_sides(*args)

    monkeypatch.setattr(data, "choose_sides", split_and_lose)
    with pytest.raises(InputError, match=r"patches_10\.png went away while the images were read"):
        read(images, tmp_path / "split")


def test_a_relative_link_to_an_image_opens_from_the_split_too(tmp_path, images):
    for path in list((images / "patches").iterdir()):
        path.rename(tmp_path / path.name)
        path.symlink_to(os.path.join("..", "..", path.name))
    loaded = read(images, tmp_path / "run" / "split")
    for side, part in (("train", loaded.train), ("test", loaded.test)):
        for file, (pixels, _) in zip(part.files, part):
            image = data.decode(tmp_path / "run" / "split" / side / file, 1)
            small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(pixels[0], small)


def test_where_a_file_system_has_no_links_images_are_copied(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(1, "not here")

    (tmp_path / "a").write_text("x")
    for how, home in (("link", os), ("symlink", os)):
        monkeypatch.setattr(home, how, refuse)
        files.place(tmp_path / "a", tmp_path / how)
        assert (tmp_path / how).read_text() == "x"
    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(InputError, match=r"cannot write .*: not here"):
        files.place(tmp_path / "a", tmp_path / "b")


# Zips


def unzip(path, folder, limits=LIMITS):
    return archives.unpack([path], path.parent, folder, limits)


def test_a_zip_is_unpacked_whole_but_for_what_has_no_name(tmp_path, images):
    (images / "readme.txt").write_text("hello")
    zip_path = zip_folder(images, tmp_path / "d.zip")
    with zipfile.ZipFile(zip_path, "a") as archive:
        archive.writestr("NAME", "x")
    zip_path.write_bytes(zip_path.read_bytes().replace(b"NAME", b"\0AME"))  # read up to the null byte: empty
    assert unzip(zip_path, tmp_path / "out") == []
    assert Counter(path.suffix for path in (tmp_path / "out").rglob("*.*")) == {".png": 30, ".txt": 1}


@pytest.mark.parametrize(
    "name", ["../../evil.png", "deep/../../../evil.png", "/absolute.png", "C:\\evil.png"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path, name, kind):
    path = tmp_path / f"d.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
    else:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo(name))
    unzip(path, tmp_path / "deep" / "er" / "out")
    written = [path for path in tmp_path.rglob("*.png")]
    assert len(written) == 1 and written[0].is_relative_to(tmp_path / "deep" / "er" / "out")


def test_broken_zips_are_refused_and_leave_nothing(tmp_path, images):
    good = zip_folder(images, tmp_path / "d.zip").read_bytes()
    flipped = bytearray(good)
    flipped[200] ^= 0xFF  # inside the first image: its checksum no longer fits
    for content in (b"no zip", good[: len(good) // 2], flipped):
        (tmp_path / "bad.zip").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*bad\.zip as a zip"):
            unzip(tmp_path / "bad.zip", tmp_path / "out")
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
        (lambda z: [z.writestr(f"a/1{i}.png", b"") for i in range(5)], "11 files, more than 10"),
        (lambda z: [z.writestr(f"a/1{i}.png", bytes(900_000)) for i in range(3)], "--limit total_gb=1"),
        (lambda z: z.writestr("a/\x1b[2J.png", png(9)), "has control characters"),
        (lambda z: z.writestr("a/\u202egnp.png", png(9)), "control characters"),
        (lambda z: z.writestr("a/" + 300 * "x" + ".png", png(9)), "File name too long.*give the folder"),
        (lambda z: z.writestr("a/0.png/1.png", png(9)), "cannot unpack"),
    ],
)
def test_zips_that_are_too_much_or_ambiguous_are_refused(tmp_path, more, message):
    limits = Limits(images=10, image_mb=1, total_gb=0.002)
    path = zip_with(tmp_path / "x.zip", more)
    with pytest.raises(InputError, match=message):
        source = intake.open_source(path, tmp_path / "run", limits)
        intake.read_images(source, RECIPE, tmp_path / "split")


def test_a_name_that_is_no_utf_8_is_refused_in_a_folder(tmp_path, images):
    try:
        os.rename(next(images.rglob("*.png")), os.fsencode(images) + b"/patches/\xff.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(InputError, match=r"'patches/\\udcff.png' has control characters or is not UTF-8"):
        read(images, tmp_path / "split")


def test_letters_of_all_scripts_are_class_names(tmp_path):
    letters = ["刮痕 😀", "שריטות", "царапины", "<b>{{ 7 }}\\textbf"]
    make_folder(tmp_path / "d", dict.fromkeys(letters, 2))
    assert read(tmp_path / "d", tmp_path / "split").facts.classes == sorted(letters)


def test_source_is_what_is_named_or_dataset_zip_or_dataset_or_drawn(tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(InputError, match=r"--data nowhere\.zip: there is no such"):
        intake.open_source("nowhere.zip", run)
    monkeypatch.setattr(intake.synthetic, "DEFAULT_PER_CLASS", 3, raising=True)
    drawn = intake.open_source(None, run)
    assert drawn.kind == "demonstration"
    assert sorted(path.name for path in drawn.folder.iterdir()) == sorted(intake.synthetic.CLASSES)
    (tmp_path / "dataset").mkdir()
    assert intake.open_source(None, run) == intake.Source(Path("dataset"), "folder", "dataset")
    zip_folder(images, tmp_path / "dataset.zip")
    shutil.rmtree(run / "dataset")
    assert intake.open_source(None, run) == intake.Source(run / "dataset", "zip", "dataset.zip")


# Decoding


def load(path, side, channels=1):
    """The pixels of one image file, (channels, side, side)."""
    (pixels,), (digest,), faults = data.read_pixels([path], side, channels)
    assert digest and not faults
    return pixels


def test_pictures_are_resized_as_torchvision_does(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    reference = transforms.Compose([transforms.Grayscale(), transforms.Resize((28, 28))])
    expected = np.asarray(reference(Image.open(tmp_path / "x.png")))
    decoder = intake.Decoder(lambda: None)
    pixels, _, _ = data.read_pixels([tmp_path / "x.png"], 28, 1, decoder)
    assert pixels.shape == (1, 1, 28, 28)
    np.testing.assert_array_equal(pixels[0, 0], expected)
    assert decoder.about == {tmp_path / "x.png": ((70, 50), "RGB")}
    assert load(tmp_path / "x.png", 28, 3).shape == (3, 28, 28)


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
    pixels = load(tmp_path / f"x{suffix}", 32)[0].astype(float)
    assert pixels[:, -6:].mean() - pixels[:, :6].mean() > 150  # dark on the left, bright on the right


def test_16_bit_images_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 16448], [32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    np.testing.assert_array_equal(load(tmp_path / "x.png", 2)[0], [[0, 64], [128, 255]])


def test_exif_rotation_is_undone(tmp_path):
    image = Image.fromarray(np.array([[0, 0], [255, 255]], dtype=np.uint8).repeat(16, 0).repeat(16, 1))
    exif = Image.Exif()
    exif[274] = 6  # the camera lay on its side: turn by a quarter, clockwise
    image.save(tmp_path / "x.png", exif=exif)
    pixels = load(tmp_path / "x.png", 32)[0]
    assert pixels[:, 0].mean() == 255
    assert pixels[:, -1].mean() == 0


def test_a_few_unreadable_files_are_left_out_and_many_stop(tmp_path):
    folder = make_folder(tmp_path / "d", {"a": 20, "b": 20})
    (folder / "a" / "a_3.png").write_bytes(b"")
    (folder / "b" / "b_4.png").write_text("no image")
    images = read(folder, tmp_path / "split")
    assert len(images.train) + len(images.test) == 38
    assert [name for name, _ in unreadable(images)] == ["a/a_3.png", "b/b_4.png"]
    (folder / "b" / "b_5.png").write_text("no image")
    with pytest.raises(InputError, match=r"3 of 40 images cannot be read, the first .*a_3\.png \("):
        read(folder, tmp_path / "again")
    (folder / "b" / "b_5.png").unlink()
    make_folder(folder, {"a": 2, "b": 22})
    with pytest.raises(InputError, match="1 images cannot be read: remove them before a study"):
        intake.load_images(folder, RECIPE)


def test_images_too_many_for_the_memory_are_kept_on_disk_and_trained_on_alike(tmp_path, images, monkeypatch):
    in_memory = read(images, tmp_path / "split")
    made, pixel_store = [], intake.pixel_store
    monkeypatch.setattr(machine, "memory_size", lambda: 0)
    monkeypatch.setattr(
        intake, "pixel_store", lambda folder: lambda *a: made.append(pixel_store(folder)(*a)) or made[-1]
    )
    on_disk = read(images, tmp_path / "split 2")
    assert isinstance(made[0], np.memmap)
    assert on_disk.train.pixels.data_ptr() == made[0].ctypes.data
    assert on_disk.train.files == in_memory.train.files
    loaders = (data.BatchLoader(part.train, RECIPE, CPU, train=True) for part in (in_memory, on_disk))
    for first, second in zip(*loaders):
        assert torch.equal(first[0], second[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "split", "split 2"]


# The split


def unlike(*sizes):
    """(labels, digests) of classes a, b, ... of so many images, all different."""
    labels = [label for label, size in zip("abcdef", sizes) for _ in range(size)]
    return labels, [str(i) for i in range(len(labels))]


def test_split_is_the_seeded_shuffle_of_the_sorted_images():
    sides = data.choose_sides(*unlike(300, 10))
    for rows, count in ((list(range(300)), 210), (list(range(300, 310)), 7)):
        random.Random(42).shuffle(rows)
        assert {sides[i] for i in rows[:count]} == {"train"}
        assert {sides[i] for i in rows[count:]} == {"test"}
    assert data.choose_sides(*unlike(300, 10), seed=7) != sides


@pytest.mark.parametrize(("count", "train"), [(2, 1), (3, 2), (4, 2), (9, 6), (10, 7), (90, 63), (190, 133)])
def test_the_cut_is_in_whole_numbers(count, train):
    assert Counter(data.choose_sides(*unlike(count))) == {"train": train, "test": count - train}


@pytest.mark.parametrize("seed", range(20))
def test_copies_take_the_same_side_and_the_sizes_hold(seed):
    labels, digests = unlike(100, 50)
    digests[50] = None  # unreadable: it has no side and does not count
    for first, second in ((1, 2), (10, 90), (33, 34), (107, 5)):  # the last across classes
        digests[first] = digests[second]
    sides = data.choose_sides(labels, digests, seed)
    assert all(len({s for s, d in zip(sides, digests) if d == digest}) == 1 for digest in digests)
    assert [sides[:100].count("train"), sides[100:].count("train"), sides[50]] == [69, 35, None]


def test_image_folder_opens_the_written_split(tmp_path, images):
    loaded = read(images, tmp_path / "split")
    for side, part in (("train", loaded.train), ("test", loaded.test)):
        folder = ImageFolder(tmp_path / "split" / side)
        assert folder.classes == part.classes == loaded.facts.classes
        assert folder.targets == part.labels.tolist() == [int(label) for _, label in part]
        assert ["/".join(Path(p).parts[-2:]) for p, _ in folder.samples] == part.files
        for i in range(len(part)):
            small = np.asarray(folder[i][0].convert("L").resize((32, 32), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(part[i][0][0], small)
    written = json.loads((tmp_path / "split" / "split.json").read_text())
    assert (written["train"], written["test"]) == (loaded.train.files, loaded.test.files)
    assert (written["seed"], written["train_percent"]) == (42, 70)
    assert Counter(file.split("/")[0] for file in written["train"]) == dict.fromkeys(folder.classes, 7)


def test_pixels_are_held_once(tmp_path, images):
    train, test, *_ = read(images, tmp_path / "split")
    assert train.pixels.data_ptr() == test.pixels.data_ptr()
    assert len(train.pixels) == len(train) + len(test) == 30
    assert sorted(train.rows.tolist() + test.rows.tolist()) == list(range(30))
    few = data.Split(train.pixels, train.rows[3:5], train.labels[3:5], train.classes, [], [])
    assert few.pixels.data_ptr() == train.pixels.data_ptr()
    assert torch.equal(few[1][0], train[4][0])


def test_the_split_links_to_the_images_and_leaves_them_alone(tmp_path, images):
    before = {p: p.read_bytes() for p in images.rglob("*.png")}
    read(images, tmp_path / "split")
    read(images, tmp_path / "split")  # as a resumed run does
    assert {p: p.read_bytes() for p in images.rglob("*.png")} == before
    placed = next((tmp_path / "split" / "train").rglob("*.png"))
    assert os.stat(placed)[stat.ST_NLINK] == 2


def test_copies_and_unreadable_files_are_on_record(tmp_path, images):
    copies = [f"crazing/crazing_{i}.png" for i in (3, 8)]
    (images / copies[1]).write_bytes((images / copies[0]).read_bytes())
    make_folder(images, {"crazing": 0, "inclusion": 0, "patches": 21})
    (images / "patches" / "patches_21.png").write_bytes(b"")
    facts = read(images, tmp_path / "split").facts
    assert (facts.same_pixels.groups, facts.same_pixels.files) == (1, copies)
    assert [entry.file for entry in facts.unreadable] == ["patches/patches_21.png"]
    assert facts.counts["train"] == {"crazing": 7, "inclusion": 7, "patches": 14}
    assert (facts.sizes, facts.modes) == ([("40 x 40", 40)], [("L", 40)])
    assert facts.fingerprint == read(images, tmp_path / "again", Recipe(split_seed=1)).facts.fingerprint
    (images / copies[1]).unlink()
    assert facts.fingerprint != read(images, tmp_path / "less").facts.fingerprint


# Batches


def split_of(count, side=8, classes=None):
    """The Split of every other row of random pixels; labels are 0 to `count` - 1."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2 * count, 1, side, side), generator=generator, dtype=torch.uint8)
    numbers, names = torch.arange(count), [str(i) for i in range(count)]
    return data.Split(pixels, 2 * numbers, numbers, classes or names, names, names)


def settings(**changes):
    return Recipe(image_size=8, patch_size=8, **PLAIN | changes)


def test_loader_gives_every_image_once_and_shuffles_anew():
    loader, again = (data.BatchLoader(split_of(10), settings(batch_size=4), CPU, train=True) for _ in "ab")
    epochs = [torch.cat([labels for _, labels in loader]).tolist() for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert len(loader) == 3
    assert torch.cat([labels for _, labels in again]).tolist() == epochs[0]


def test_test_batches_are_the_images_as_they_are():
    part = split_of(5)
    loader = data.BatchLoader(part, settings(batch_size=2, standardize=False, flip=True, mixup=0.4), CPU)
    batches = torch.cat([images for images, _ in loader])
    reference = transforms.Normalize((0.5,), (0.5,))(part.pixels[part.rows] / 255)  # the template's
    torch.testing.assert_close(batches, reference)
    assert torch.cat([labels for _, labels in loader]).tolist() == list(range(5))


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
    batch = data.augment(image.repeat(400, 1, 1, 1), settings(flip=True, transpose=True), generator)
    eight = {
        tuple(torch.rot90(x, k, (-2, -1)).flatten().tolist()) for k in range(4) for x in (image, image.mT)
    }
    counts = Counter(tuple(x.flatten().tolist()) for x in batch)
    assert set(counts) == eight
    assert min(counts.values()) > 20


def test_flips_can_be_left_right_alone():
    image = torch.arange(9.0).reshape(1, 1, 3, 3) / 9
    for changes, turned in (({}, [image.flip(-1)]), ({"flip": False, "vertical_flip": True}, [])):
        values = settings(**{"flip": True, "vertical_flip": False, "transpose": False} | changes)
        batch = data.augment(image.repeat(100, 1, 1, 1), values, torch.Generator().manual_seed(0))
        assert {tuple(x.flatten().tolist()) for x in batch} == {
            tuple(x.flatten().tolist()) for x in (image, *turned)
        }


def test_shifts_move_by_up_to_the_share_and_mirror_the_edge():
    image = torch.arange(100.0).reshape(1, 1, 1, 100).expand(1, 1, 100, 100) / 100
    generator = torch.Generator().manual_seed(0)
    batch = data.augment(image.repeat(200, 1, 1, 1), settings(crop=0.1), generator)
    shifts = (batch[:, 0, 50, 50] * 100).round() - 50
    assert set(shifts.int().tolist()) == set(range(-10, 11))
    assert batch.min() >= 0
    assert batch.shape == (200, 1, 100, 100)


def test_brightness_and_contrast_stay_in_range_and_differ_by_image():
    images = torch.rand(50, 1, 8, 8)
    changes = settings(brightness=0.3, contrast=0.3)
    changed = data.augment(images, changes, torch.Generator().manual_seed(0))
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed - images).mean((1, 2, 3)).std() > 0.05


def test_mixup_blends_images_and_targets_by_the_same_share():
    images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 1, 4, 4)  # pixels are the image's number
    mixed, targets = data.mixup(images, torch.eye(8), 0.4, np.random.default_rng(0))
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets @ torch.arange(8.0))
    assert (targets.max(1).values < 1).any()


def test_mixup_gives_training_batches_shares_of_all_classes_also_of_one_that_is_not_there():
    part = split_of(10, classes=[*"0123456789", "absent"])
    train, test = (data.BatchLoader(part, settings(mixup=0.4), CPU, side) for side in (True, False))
    (_, shares), (_, numbers) = next(iter(train)), next(iter(test))
    assert shares.shape == (10, 11)
    torch.testing.assert_close(shares.sum(1), torch.ones(10))
    assert (shares[:, 10] == 0).all() and (shares.max(1).values < 1).any()
    assert numbers.tolist() == list(range(10))


def test_without_changes_nothing_is_drawn():
    images, generator = torch.rand(3, 1, 8, 8), torch.Generator().manual_seed(0)
    state = generator.get_state()
    torch.testing.assert_close(data.augment(images, settings(), generator), images)
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
    assert [name for name, _ in unreadable(read(folder, tmp_path / "split"))] == ["a/odd.tif"]
    assert caplog.records == []
