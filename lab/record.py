"""The run record: everything the report may say, in one typed value that is written once as JSON.

It is the wall between computing and telling: what is not in it, no report can state.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from lab.errors import InputError
from lab.files import sha256, write_csv, write_whole
from lab.findings import Findings
from lab.recipe import Recipe

SCHEMA = 10  # one more where a field or a hyperparameter comes or goes, or a fitted value is found otherwise


@dataclass
class Student:
    id: str
    name: str | None = None


@dataclass
class NamedRecipe:
    """The hyperparameters of the run; `name` is the recipe's, or "search".

    `reasons` say of the values that were fitted to the images (lab/fitting.py) why they are as they are.
    """

    name: str
    values: Recipe
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def fitted(self):
        """[([(hyperparameter, value)], reason)] of the values that were fitted, by their reasons."""
        names = defaultdict(list)
        for name, reason in self.reasons.items():
            names[reason].append(name)
        return [([(n, getattr(self.values, n)) for n in some], reason) for reason, some in names.items()]


@dataclass
class Machine:
    """Where the run took place. `precision`: fp32, bf16 or fp16, of the forward and backward pass;
    `processes`: how many trained together, each with so many threads or a GPU."""

    system: str
    python: str
    processor: str
    cores: int
    threads: int
    device: str
    gpu: str | None
    packages: dict[str, str]
    precision: str = "fp32"
    processes: int = 1


class Source(NamedTuple):
    """Where the images are. `plain`: the submitted code, which knows zips only, finds them there too."""

    folder: str
    kind: str  # "zip", "folder" or "demonstration"
    name: str  # of the zip or folder that was given
    plain: bool = True
    notes: tuple[str, ...] = ()  # what was guessed on unpacking


@dataclass
class SplitFacts:
    train_percent: int
    seed: int


@dataclass
class Copies:
    """Files with the same pixels as another: `groups` of them, and all their names."""

    groups: int
    files: list[str]


@dataclass
class Unreadable:
    file: str
    reason: str


@dataclass
class LeftOut:
    """So many files that were found and not used, for one reason, and the path of one of them."""

    reason: str
    files: int
    example: str

    @property
    def told(self):
        return f"left out: {self.files} {self.reason}, as {self.example}"


@dataclass
class KeptTogether:
    """Images that stay on one side because they show one thing: for which reason, in how many groups, how
    many images, and two of one group."""

    reason: str
    groups: int
    images: int
    example: str


@dataclass(frozen=True)
class Choices:
    """How the user said the files are to be understood: the flags --labels, --include, --exclude, --group."""

    labels: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    group: str | None = None


@dataclass
class DataFacts:
    """The images. `source` is zip, folder or demonstration; `counts` is {"train": {class: n}, "test": ...};
    `sizes` and `modes` are (name, number of files), the most frequent first.

    `notes` are sentences about what was guessed or converted; `contradictions` name equal pictures of
    different classes ("a/1.png and b/7.png"); `presented` says what the model is shown ("grey, 200 x 200
    pixels, ..."); `light`: between which mean values, of 0 to 255, 98 % of the training images lie, as the
    model is shown them; `pixel_range` is what becomes 0 and 255 in images of more than 8 bits; `from_split`
    is true where the submitted code cannot come to the same split by itself and reads the run's
    dataset_split/.
    """

    source: str
    name: str
    demonstration: bool
    classes: list[str]
    counts: dict[str, dict[str, int]]
    split: SplitFacts
    sizes: list[tuple[str, int]]
    modes: list[tuple[str, int]]
    same_pixels: Copies
    unreadable: list[Unreadable]
    fingerprint: str  # SHA-256 over the files' names and pixels
    left_out: list[LeftOut] = field(default_factory=list)
    kept_together: list[KeptTogether] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    presented: str = ""
    light: tuple[float, float] = (0.0, 255.0)
    pixel_range: tuple[float, float] | None = None
    from_split: bool = False
    choices: Choices = field(default_factory=Choices)


@dataclass
class ModelFacts:
    """The model as torchinfo summarises it."""

    parameters: int
    summary: str


@dataclass
class EpochRow:
    """One epoch of the training. Rates are those of its last step; seconds include the scoring."""

    epoch: int
    learning_rate: float
    muon_learning_rate: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    train_seconds: float
    seconds: float


@dataclass
class TrainingFacts:
    seconds: float
    images_per_second: float
    history: list[EpochRow]


@dataclass
class ClassScore:
    precision: float
    recall: float
    f1: float
    images: int


@dataclass
class Prediction:
    """A test image: its file ("class/name"), true and predicted class, and the softmax of each class."""

    file: str
    true: str
    predicted: str
    confidences: list[float]


@dataclass
class CalibrationBin:
    low: float
    high: float
    images: int
    accuracy: float | None
    confidence: float | None


@dataclass
class Calibration:
    ece: float
    bins: list[CalibrationBin]


@dataclass
class Threshold:
    """The lowest confidence from which on at least the share `precision` of the answers on the test split is
    right; None where no confidence is high enough."""

    precision: float
    confidence: float | None


@dataclass
class Results:
    """The scores on the test split; true classes are the rows of the confusion matrix."""

    loss: float
    correct: int
    total: int
    accuracy: float
    interval: tuple[float, float]
    baseline: float
    passed: bool
    p_value: float
    balanced_accuracy: float  # the mean recall of the classes
    macro_f1: float
    largest_class: str  # of the test split, and its share: the accuracy of always naming it
    largest_share: float
    confusion_matrix: list[list[int]]
    per_class: dict[str, ClassScore]
    calibration: Calibration
    predictions: list[Prediction]
    thresholds: list[Threshold] = field(default_factory=list)

    @property
    def beats_largest(self):
        """Whether even the lower end of the accuracy's interval lies above what always naming the largest
        class would reach."""
        return self.interval[0] > self.largest_share

    def beside(self):
        """What the accuracy means little without, in words for the console."""
        words = (
            f"largest class {self.largest_share:.2%}, balanced accuracy {self.balanced_accuracy:.2%}, "
            f"macro-F1 {self.macro_f1:.3f}"
        )
        if self.beats_largest:
            return words
        return f"{words}; NOT shown to be better than always answering {self.largest_class[:40]!r}"


@dataclass
class Sample:
    """An image that the report shows; `picture` is its file in the run folder."""

    file: str
    true: str
    picture: str = ""


@dataclass
class ShownPrediction:
    file: str
    true: str
    predicted: str
    confidence: float
    picture: str = ""


@dataclass
class BlockDistance:
    mean: float
    least: float
    most: float


@dataclass
class Attention:
    """Attention distances in pixels, over so many test images; `even` is that of even attention."""

    images: int
    even: float
    blocks: list[BlockDistance]


@dataclass
class Shown:
    """What the report shows of single images, and the file with the arrays of its figures."""

    examples: list[ShownPrediction]
    mistakes: list[ShownPrediction]
    train_samples: list[Sample]
    test_samples: list[Sample]
    rollouts: list[ShownPrediction]
    attention: Attention
    arrays: str


@dataclass
class Record:
    student: Student
    date: str
    recipe: NamedRecipe
    machine: Machine
    data: DataFacts
    model: ModelFacts
    training: TrainingFacts
    results: Results
    findings: Findings
    shown: Shown
    stages: dict[str, float]  # seconds of each
    files: dict[str, str] = field(default_factory=dict)  # SHA-256
    drawn_with: str = ""  # which state of the templates drew the report (report.drawing)
    schema: int = SCHEMA


def as_json(value):
    """A typed value as JSON text, indented, in the order of its fields. ValueError for a NaN."""
    return json.dumps(msgspec.to_builtins(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_record(path, record):
    """Write a Record as JSON, whole or not at all."""
    write_whole(path, as_json(record))


def read_record(path, student_id=None):
    """The Record in a JSON file. InputError where there is none, it is damaged, or another student's."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        named = set(content["recipe"]["values"]) == set(Recipe.__dataclass_fields__)
        record = msgspec.convert(content, Record) if content["schema"] == SCHEMA and named else None
    except FileNotFoundError:
        raise InputError(f"there is no {path}: a finished run of this id is needed") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): run again with --force") from None
    if record is None:
        raise InputError(f"{path} was written by another version: run again with --force")
    if student_id not in (None, record.student.id):
        raise InputError(f"{path} is of student {record.student.id}: give the folder that name again")
    return record


def is_as_written(record, path):
    """Whether a bundle's file is there, and still the one that the record's run wrote under this name."""
    return path.is_file() and sha256(path) == record.files.get(path.name)


def write_tables(folder, record):
    """predictions.csv and confusion_matrix.csv beside the record, from the record."""
    classes, results = record.data.classes, record.results
    write_csv(
        folder / "predictions.csv",
        ["file", "true", "predicted", *(f"confidence {name}" for name in classes)],
        [[p.file, p.true, p.predicted, *p.confidences] for p in results.predictions],
    )
    write_csv(
        folder / "confusion_matrix.csv",
        ["true \\ predicted", *classes],
        [[name, *row] for name, row in zip(classes, results.confusion_matrix)],
    )
