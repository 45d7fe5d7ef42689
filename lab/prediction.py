"""A finished bundle's model on new pictures: `run.py --predict`.

They are prepared as in training, by the same functions (data.py): decoded, scaled, standardised, and scored
in all views. However many there are, a few hundred at a time are in the memory.
"""

import contextlib
import csv
import heapq
import io
import itertools
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import data
import train
from lab import archives, layout, scores
from lab.bundle import file_name
from lab.errors import InputError, printable
from lab.files import csv_row, writing_whole
from lab.inspection import attention_rollout
from lab.intake import Decoder, check_folder, save_thumbnail
from lab.machine import choose_device, keep_freed_memory
from lab.record import Choices, Unreadable, is_as_written, read_record
from lab.weights import fit_model, load_weights

AT_ONCE = 256  # pictures in the memory, about
SHOWN = 1000  # on the page: those that the model is least sure of
SIDE = 160  # pixels of a picture on the page


@dataclass
class Answer:
    """What the model says of a picture."""

    name: str
    path: Path
    predicted: str
    confidence: float
    confidences: list[float]
    unsure: bool
    picture: bytes = b""  # a JPEG of `size`, (width, height)
    size: tuple[int, int] = (0, 0)
    rollout: np.ndarray | None = None  # (rows, columns), largest 1


@dataclass
class Outcome:
    """All that the page shows. `answers` are the least sure ones, least sure first."""

    student_id: str
    date: str  # of the run
    classes: list[str]
    threshold: float | None
    counts: Counter = field(default_factory=Counter)  # pictures by predicted class
    unsure: int = 0
    answers: list[Answer] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    beside: str = ""  # how many are not as the run's images were

    @property
    def pictures(self):
        return sum(self.counts.values())


def unfamiliar(facts, seen):
    """One sentence on how many pictures are not as the run's images were, and whether any are.

    seen: {(size, mode, whether brighter or darker than nearly all): pictures}. Of a hundred training images
    two were beyond `light` as well.
    """
    sides = np.array([[int(n) for n in size.split(" x ")] for size, _ in facts.sizes])
    low, high, modes = sides.min(0), sides.max(0), {mode for mode, _ in facts.modes}
    of_size = sum(n for (size, *_), n in seen.items() if (size < low).any() or (size > high).any())
    of_mode = sum(n for (_, mode, _), n in seen.items() if mode not in modes)
    of_light, pictures = sum(n for (*_, odd), n in seen.items() if odd), sum(seen.values())
    sizes = " x ".join(f"{a} to {b}" if a != b else f"{a}" for a, b in zip(low, high))
    words = (
        f"{of_size:,} of {pictures:,} pictures are smaller or larger than the run's ({sizes}), "
        f"{of_light:,} darker or brighter than nearly all of them (means {{:g}} to {{:g}}), "
        f"{of_mode:,} of another mode ({', '.join(sorted(modes))})"
    )
    return words.format(*facts.light), bool(of_size or of_mode or of_light > 0.05 * pictures)


def find_pictures(places, scratch, limits):
    """([(name, path)] of the pictures in files, folders, zips and tars, what is to say of other files).

    Archives are unpacked in the folder `scratch`. InputError where a place is none of these, or outside the
    limits.
    """
    found, left_out, notes = [], defaultdict(list), []
    places = list(dict.fromkeys(map(Path, places)))  # none twice
    names = [place.name for place in places]
    for number, place in enumerate(places):
        own = place.name if names.count(place.name) == 1 else place.as_posix()
        before = f"{own}/" if len(places) > 1 else ""
        if place.is_file() and archives.is_archive_name(place):
            place, home = scratch / str(number), place
            notes += archives.unpack([home], home.parent, place, limits)
        elif place.is_file():
            found.append((own, place))
            continue
        if not place.is_dir():
            raise InputError(f"--predict {place}: there is no such picture, folder or zip")
        check_folder(place, limits)
        candidates, _ = layout.sort_files(place, Choices(), left_out)
        found += [(before + path.as_posix(), place / path) for path in candidates]
    if not found:
        raise InputError(f"no pictures in {', '.join(map(str, places))}")
    return found, [*notes, *(row.told for row in layout.count_left_out(left_out))]


def load_bundle(folder, student_id):
    """(Record, model) of a finished bundle. InputError where there is none, or its weights do not fit."""
    record = read_record(folder / "run" / "record.json", student_id)
    weights, _ = load_weights(folder / file_name(student_id, "pth"))
    return record, fit_model(weights, record.recipe.values, len(record.data.classes)).eval()


class Predictor:
    """Scores pictures and keeps what the page needs. `model` is on its device."""

    def __init__(self, record, model, threshold, tick):
        self.recipe, self.facts, self.model = record.recipe.values, record.data, model
        self.decoder = Decoder(tick, self.facts.pixel_range)
        self.seen = Counter()  # as `unfamiliar` takes it
        self.outcome = Outcome(record.student.id, record.date, self.facts.classes, threshold)

    def read(self, paths):
        """As data.read_pixels."""
        return data.read_pixels(paths, self.recipe.image_size, self.recipe.channels, decode=self.decoder)

    def score(self, pixels, rows):
        """The confidences (n, classes) of rows of pixels, as of a test split."""
        rows = torch.tensor(rows)
        split = data.Split(torch.from_numpy(pixels), rows, torch.zeros_like(rows), self.facts.classes, [], [])
        loader = data.BatchLoader(split, self.recipe, next(self.model.parameters()).device)
        return scores.confidences_of(train.predict(self.model, loader, self.recipe)[0].cpu().numpy())

    def answer(self, pictures):
        """The Answers to some (name, path)."""
        pixels, digests, faults = self.read([path for _, path in pictures])
        name_of = {path: name for name, path in pictures}
        self.outcome.unreadable += [
            Unreadable(printable(name_of[path]), printable(reason.replace(str(path), path.name)))
            for path, reason in faults
        ]
        rows = [row for row, digest in enumerate(digests) if digest]
        if not rows:
            return []
        answers, (dark, bright) = [], self.facts.light
        for row, exact in zip(rows, self.score(pixels, rows)):
            name, path = pictures[row]
            odd = not dark - 1 <= pixels[row].mean() <= bright + 1
            self.seen[(*self.decoder.about[path], odd)] += 1
            confidences, best = scores.as_written(exact), int(exact.argmax())  # rounded, two may be equal
            predicted, most = self.facts.classes[best], confidences[best]
            unsure = self.outcome.threshold is not None and most < self.outcome.threshold
            answers.append(Answer(printable(name), path, predicted, most, confidences, unsure))
            self.outcome.counts[predicted] += 1
            self.outcome.unsure += unsure
        self.decoder.about.clear()  # however many there are
        return answers

    def illustrate(self, answers):
        """Give each Answer its picture, and where the model looked."""
        grid = self.recipe.image_size // self.recipe.patch_size
        device = next(self.model.parameters()).device
        for start in range(0, len(answers), AT_ONCE):
            part = answers[start : start + AT_ONCE]
            pixels, digests, _ = self.read([answer.path for answer in part])
            for answer, image, digest in zip(part, torch.from_numpy(pixels), digests):
                if digest is None:  # it went away in between
                    continue
                inputs = data.normalize(image[None].to(device).float() / 255, self.recipe.standardize)
                rollout = attention_rollout(self.model, inputs)[0].reshape(grid, grid)
                answer.rollout = rollout / rollout.max()
                file, decode = io.BytesIO(), self.decoder.decode
                answer.size = save_thumbnail(answer.path, file, self.recipe.channels, SIDE, decode)
                answer.picture = file.getvalue()


def predict(options, screen):
    """Write predictions.csv of the pictures named by --predict -> (its path, Outcome)."""
    device = choose_device(options.device)
    record, model = load_bundle(options.folder, options.student_id)
    weights = options.folder / file_name(options.student_id, "pth")
    if not is_as_written(record, weights):
        screen.say(f"{weights.name} is not the file that the run wrote: classes may be wrong", "yellow")
    keep_freed_memory()
    table = options.folder / "predictions" / "predictions.csv"
    with tempfile.TemporaryDirectory() as scratch:
        pictures, notes = find_pictures(options.predict, Path(scratch), options.limits)
        for line in notes:
            screen.say(line, "yellow")
        table.parent.mkdir(exist_ok=True)
        with screen.count("reading pictures", len(pictures)) as tick:
            predictor = Predictor(record, model.to(device), options.threshold, tick)
            outcome = predictor.outcome
            answers = _written(predictor, pictures, table)
            try:
                outcome.answers = heapq.nsmallest(SHOWN, answers, key=lambda answer: answer.confidence)
            except InputError:
                with contextlib.suppress(OSError):  # there is a table of before in it
                    table.parent.rmdir()
                raise
            predictor.decoder.tick = lambda: None  # the bar has counted them
        predictor.illustrate(outcome.answers)
    outcome.beside, odd = unfamiliar(record.data, predictor.seen)
    _say(outcome, odd, record.results, screen)
    return table, outcome


def _written(predictor, pictures, path):
    """Yield the Answers to all pictures, each after it was written to a CSV."""
    batch = predictor.recipe.batch_size
    step = batch * -(-AT_ONCE // batch)  # whole batches, as the run's own evaluation has them
    marked = predictor.outcome.threshold is not None
    with writing_whole(path) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        table = csv.writer(text, lineterminator="\n")
        confidences = [f"confidence {name}" for name in predictor.facts.classes]
        table.writerow(["file", "predicted", *["sure"] * marked, *confidences])
        for start in range(0, len(pictures), step):
            for answer in predictor.answer(pictures[start : start + step]):
                mark = ["unsure" if answer.unsure else "sure"] * marked
                table.writerow(csv_row([answer.name, answer.predicted, *mark, *answer.confidences]))
                yield answer
        if not predictor.outcome.pictures:  # the table of before stays
            first = predictor.outcome.unreadable[0]
            raise InputError(f"no picture can be read, the first {first.file} ({first.reason})")
        text.detach()  # writes the rest, and leaves the file open


def _say(outcome, odd, results, screen):
    """What came of it, on the screen."""
    counts = [(name, f"{outcome.counts[name]:,}") for name in outcome.classes if outcome.counts[name]]
    screen.table(("class", "pictures"), counts)
    for file in outcome.unreadable[:5]:
        screen.say(f"unreadable: {file.file} ({file.reason})", "yellow")
    if (more := len(outcome.unreadable) - 5) > 0:
        screen.say(f"and {more:,} more that are unreadable", "yellow")
    screen.say(outcome.beside, "yellow" if odd else None)
    if outcome.threshold is not None:
        screen.say(
            f"{outcome.unsure:,} of {outcome.pictures:,} are marked unsure, below {outcome.threshold:g}"
        )
        return
    for row, higher in itertools.pairwise([*results.thresholds, None]):
        if row.confidence is None:
            above = f"{scores.FEWEST} answers or more above it"
            screen.say(f"on the test split no confidence has {above} of which {row.precision:.0%} are right")
            continue
        if higher and row.confidence == higher.confidence:
            continue
        share = np.mean([max(p.confidences) >= row.confidence for p in results.predictions])
        screen.say(
            f"--threshold {row.confidence:g} marks the less sure ones: on the test split at least "
            f"{row.precision:.0%} of the answers above it are right, which are {share:.1%} of all"
        )
