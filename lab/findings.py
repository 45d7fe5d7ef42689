"""What studies found, as the record and the report hold it: typed, and read from JSON with its types checked.

`study/` makes these from its results; nothing here trains.
"""

from dataclasses import dataclass, field

from lab.recipe import Recipe


@dataclass(frozen=True)
class StudyMachine:
    """Where a study was run."""

    processor: str
    cores: int
    gpu: str | None = None


@dataclass(frozen=True)
class StudyData:
    """The images of a study; `name` is that of the zip or folder, where it is known."""

    fingerprint: str
    name: str | None = None
    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What studies have alike."""

    data: StudyData
    machine: StudyMachine
    date: str
    fresh: bool = False  # made by the user, not recorded with the project
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Accuracy (0 to 1) over some runs. Here and below, what cannot be determined is None."""

    runs: int
    failed: int
    accuracy: float | None
    sd: float | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Compared(Scores):
    """With paired differences to other runs; `low` and `high` bound the 95 % interval of `difference`."""

    difference: float | None
    low: float | None
    high: float | None
    within_noise: bool | None


@dataclass(frozen=True, kw_only=True)
class DiaryRow(Compared):
    """A changed value, compared with the start."""

    name: str
    value: bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class DiaryStart(Scores):
    """The recipe that all rows of a diary are compared with."""

    images: int


@dataclass(frozen=True, kw_only=True)
class Diary(Study):
    """An ablation diary: one hyperparameter changed at a time, on validation folds."""

    name: str
    recipe: dict[str, bool | int | float | str]
    folds: int
    start: DiaryStart
    rows: list[DiaryRow]


@dataclass(frozen=True, kw_only=True)
class ComparisonRow(Compared):
    """One network on one share (percent) of the training split, over its seeds."""

    model: str
    share: float
    equal: str  # to the ViT: "steps" or "time"
    train_images: int | None
    parameters: int | None
    mult_adds: int | None
    inference_rate: float | None
    pairs: int
    epochs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison(Study):
    """The ViT beside CNNs. `tuned`: {network: the values that are its own}."""

    recipe: dict[str, bool | int | float | str]
    tuned: dict[str, dict[str, bool | int | float | str]]
    rows: list[ComparisonRow]


@dataclass(frozen=True)
class Trial:
    """A trial of a search; `changed` are the values in which it differs from the recipe."""

    number: int
    state: str  # complete, pruned, failed; put back, lost; running, waiting
    base: bool  # the recipe itself
    again: int | None  # the number of the trial whose values these are
    changed: dict[str, bool | int | float | str]
    accuracy: float | None
    loss: float | None
    epochs: int
    seconds: float | None
    failure: str | None
    precision: str | None


@dataclass(frozen=True, kw_only=True)
class Search(Study):
    """A search for a recipe: `states` counts its trials by how they ended."""

    recipe: Recipe
    searched: list[str]
    folds: int
    states: dict[str, int]
    seconds: float
    base: Trial | None
    best: Trial
    importances: dict[str, float] | None


@dataclass
class Findings:
    """The studies that a report shows, or None; `elsewhere`: a comparison on other images, and `longer` at
    the full length there."""

    search: Search | None = None
    diary: Diary | None = None
    comparison: Comparison | None = None
    elsewhere: Comparison | None = None
    longer: Comparison | None = None
