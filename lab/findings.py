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


@dataclass(frozen=True)
class DiaryRow:
    """A changed value: accuracy (0 to 1) over its runs, and its paired differences to the start.

    `low` and `high` bound the 95 % interval of `difference`; what cannot be determined is None.
    """

    name: str
    value: bool | int | float | str
    runs: int
    failed: int
    accuracy: float | None
    sd: float | None
    seconds: float | None
    difference: float | None
    low: float | None
    high: float | None
    within_noise: bool


@dataclass(frozen=True)
class DiaryStart:
    """The recipe that all rows of a diary are compared with."""

    runs: int
    failed: int
    images: int
    accuracy: float | None
    sd: float | None
    seconds: float | None


@dataclass(frozen=True)
class Diary:
    """An ablation diary: one hyperparameter changed at a time, on validation folds."""

    name: str
    recipe: dict[str, bool | int | float | str]
    folds: int
    data: StudyData
    machine: StudyMachine
    date: str
    start: DiaryStart
    rows: list[DiaryRow]
    fresh: bool = False  # made by the user, not recorded with the project
    file: str = ""


@dataclass(frozen=True)
class ComparisonRow:
    """One network on one share (percent) of the training split, over its seeds."""

    model: str
    share: float
    equal: str  # to the ViT: "steps" or "time"
    runs: int
    failed: int
    train_images: int | None
    accuracy: float | None
    sd: float | None
    parameters: int | None
    mult_adds: int | None
    seconds: float | None
    inference_rate: float | None
    pairs: int
    difference: float | None
    low: float | None
    high: float | None
    within_noise: bool | None
    epochs: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The ViT beside CNNs. `tuned`: {network: the values that are its own}."""

    recipe: dict[str, bool | int | float | str]
    tuned: dict[str, dict[str, bool | int | float | str]]
    data: StudyData
    machine: StudyMachine
    date: str
    rows: list[ComparisonRow]
    fresh: bool = False
    file: str = ""


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


@dataclass(frozen=True)
class Search:
    """A search for a recipe: `states` counts its trials by how they ended."""

    recipe: Recipe
    machine: StudyMachine
    data: StudyData
    date: str
    searched: list[str]
    folds: int
    states: dict[str, int]
    seconds: float
    base: Trial | None
    best: Trial
    importances: dict[str, float] | None
    fresh: bool = False
    file: str = ""


@dataclass
class Findings:
    """The studies that a report shows, or None; `elsewhere`: a comparison on other images."""

    search: Search | None = None
    diary: Diary | None = None
    comparison: Comparison | None = None
    elsewhere: Comparison | None = None
