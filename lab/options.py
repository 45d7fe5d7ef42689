"""The command line of run.py: flags in groups, and which of them go together."""

import argparse
import dataclasses
import itertools
import re
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from lab.bundle import check_student_id
from lab.errors import InputError, check_name, check_packages
from lab.limits import Limits, limits_of
from lab.recipe import FITTED, Recipe, free_names, load_recipe, named_recipes, parse_setting
from lab.record import Choices

OUTPUTS = Path("outputs")
KEPT = ("latex", "notebook", "zip", "tensorboard", "no-verify")  # flags of a run that --resume needs again
FRESH = "fresh"  # in place of a study's file: make the study now
EXAMPLES = """\
examples:
  python run.py --student-id 0812345                        try it: drawn demonstration images
  python run.py --student-id 0812345 --data dataset.zip     your images: a zip or a folder
  python run.py --check --data dataset.zip                  what would be used, what left out, and why
  python run.py --student-id 0812345 --name "Lin Mei" --set epochs=40 --set learning_rate=5e-4
  python run.py --student-id 0812345 --answers my_answers --report-only
                                                            new words, same measurements
  python run.py --student-id 0812345 --predict new_pictures what does the model say of these?
  python run.py --verify outputs/0812345                    does the bundle hold what its PDF states?

other commands: python -m study --help (search, trials, diary, compare), python -m verify --help (bundles)

"""


@dataclass(frozen=True)
class Options:
    """What a user asked of run.py. `settings` are the (name, value) pairs that change the recipe."""

    student_id: str | None
    name: str | None
    data: str | None
    limits: Limits
    choices: Choices
    check: bool
    recipe_name: str
    recipe: Recipe
    settings: tuple
    free: frozenset
    device: str
    precision: str
    study: bool
    budget: str | None
    diary: str | None
    compare: str | None
    resume: bool
    output_dir: Path
    answers: Path | None
    latex: bool
    notebook: bool
    zip: bool
    onnx: int | None
    tensorboard: bool
    force: bool
    report_only: bool
    predict: list[Path] | None
    threshold: float | None
    verify: Path | None
    no_verify: bool
    quiet: bool

    @property
    def folder(self):
        """The output folder of the student's id."""
        return self.output_dir / self.student_id

    @property
    def again(self):
        """The flags with which an interrupted run goes on to the same files; the rest it knows itself."""
        flags = ["--student-id", self.student_id, "--resume"]
        flags += ["--output-dir", str(self.output_dir)] if self.output_dir != OUTPUTS else []
        flags += ["--device", self.device] if self.device != "auto" else []
        flags += ["--answers", str(self.answers)] if self.answers else []
        flags += [f"--{name}" for name in KEPT if getattr(self, name.replace("-", "_"))]
        flags += ["--onnx", str(self.onnx)] if self.onnx else []
        return shlex.join(flags)

    @property
    def stages(self):
        """How many stages a run with these options has."""
        drawn = 1 if self.report_only else 6 + self.makes_studies
        extra = self.notebook + bool(self.onnx) + self.checks_bundle
        return 0 if self.verify or self.check or self.predict else drawn + extra

    @property
    def makes_studies(self):
        """Whether a study is to be made within the run, which adds a stage."""
        return self.study or FRESH in (self.diary, self.compare)

    @property
    def checks_bundle(self):
        """Whether the new bundle is verified at the end. New words change no measurement."""
        return not (self.no_verify or self.report_only)


class Once(argparse.Action):
    """Sets a flag's value; a second one would take the place of the first without a word."""

    def __call__(self, parser, namespace, values, option_string=None):
        if self.dest in (given := namespace.__dict__.setdefault("given", set())):
            parser.error(f"{option_string} is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def make_parser():
    """The argparse parser of run.py."""
    values = load_recipe("default").as_dict()
    fitted = ", ".join(name for name in values if name in FITTED)
    about = (
        "hyperparameters for --set (defaults of the recipe `default`, which fits these to the images "
        f"unless they are set: {fitted}):"
    )
    hyperparameters = textwrap.fill(about, 100) + "\n"
    hyperparameters += "".join(
        f"  {f.name + ' = ' + str(values[f.name]).lower():27} {f.metadata['doc']}\n"
        for f in dataclasses.fields(Recipe)
    )
    parser = argparse.ArgumentParser(
        prog="run.py",
        usage="run.py --student-id ID [--data PATH] [options]",
        description="Train a hand-written Vision Transformer on a zip or folder of images and write "
        "<id>_Lab8_Homework.pdf, .py and .pth to outputs/<id>/.",
        epilog=EXAMPLES + hyperparameters,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.register("action", None, Once)
    for add in (_add_data, _add_training, _add_outputs, _add_afterwards):
        add(parser)
    return parser


def add_choices(group):
    """Add the flags of lab.record.Choices to an argparse parser or group; `choices_of` reads them."""
    add, repeated = group.add_argument, {"action": "append", "default": []}
    labels = "classes from a table in place of folders: FILE, or FILE:image column,label column"
    add("--labels", metavar="FILE", help=labels)
    add("--exclude", metavar="GLOB", **repeated, help="leave such files out (repeatable)")
    masks = "use such files although they look like masks (repeatable)"
    add("--include", metavar="GLOB", **repeated, help=masks)
    together = "images whose paths give the same match stay on one side: one coil, one patient"
    add("--group", metavar="REGEX", help=together)


def choices_of(args):
    """The Choices in parsed arguments."""
    # old/ and ./old, as a shell completes them, mean old.
    include, exclude = (
        tuple(re.sub(r"^(\./)+|/+$", "", glob) for glob in globs) for globs in (args.include, args.exclude)
    )
    return Choices(args.labels, include, exclude, args.group)


def _add_data(parser):
    group = parser.add_argument_group("what to train on")
    add = group.add_argument
    data = "zip, tar or folder with a folder of images for each class, or 'demo' (default: dataset.zip or "
    add("--data", metavar="PATH", help=data + "dataset/ here, else drawn demonstration images)")
    limit = "what it may hold: images (files, default 200000), image_mb (200), total_gb (50, unpacked)"
    add("--limit", metavar="NAME=N", action="append", default=[], help=limit)
    add("--check", action="store_true", help="say how the files are understood, and stop before training")
    add_choices(group)


def _add_training(parser):
    add, names = parser.add_argument_group("how to train").add_argument, ", ".join(named_recipes())
    about = f"{names}, or a .toml file (default: default, which is fitted to the images)"
    add("--recipe", metavar="NAME", default="default", help=about)
    change = "change one hyperparameter of the recipe (repeatable; list below)"
    add("--set", metavar="NAME=VALUE", action="append", default=[], help=change)
    add("--seed", type=int, metavar="N", help="training seed, the same as --set seed=N")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    fastest = "of the forward and backward pass (default: the fastest the device has)"
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help=fastest)
    add("--resume", action="store_true", help="go on with this id's interrupted run")
    add("--study", action="store_true", help="first search for a better recipe, train that")
    add("--budget", metavar="HOW MUCH", help="of --study: 90s, 10m (default), 2h, or a number of trials")


def _add_outputs(parser):
    add = parser.add_argument_group("what to write").add_argument
    add("--student-id", metavar="ID", help="names the three files")
    add("--name", metavar="NAME", help="your name, for the title block")
    add("--answers", metavar="DIR", type=Path, help="your answers q06.md ... q10d.md, in place of ours")
    add("--output-dir", metavar="DIR", type=Path, default=OUTPUTS)
    force = "replace a finished bundle of this id, with what was made from it, or an interrupted run"
    add("--force", action="store_true", help=force)
    add("--latex", action="store_true", help="also the report as LaTeX, in latex/")
    add("--notebook", action="store_true", help="also the code as a notebook, with outputs")
    add("--zip", action="store_true", help="also one zip of the three files, to upload")
    onnx = "also the model as ONNX (opset 18), for other programs"
    add("--onnx", metavar="OPSET", type=int, nargs="?", const=18, help=onnx)
    scores = "also the scores of each epoch for TensorBoard, as they come"
    add("--tensorboard", action="store_true", help=scores)
    study = {"metavar": "JSON", "nargs": "?", "const": FRESH}
    made = "results of python -m study, or none to make them now (slow on a CPU)"
    add("--diary", **study, help=f"ablation diary (question 7): {made}")
    add("--compare", **study, help=f"ViT beside CNNs (question 8): {made}")


def _add_afterwards(parser):
    add = parser.add_argument_group("afterwards").add_argument
    add("--report-only", action="store_true", help="draw the PDF of a finished run again")
    asked = "ask this id's finished model about new pictures: files, folders, zips"
    add("--predict", metavar="PATH", type=Path, nargs="+", help=asked)
    unsure = "of --predict: less confident answers are marked unsure"
    add("--threshold", metavar="P", type=float, help=unsure)
    bundles = "check bundles, nothing else: a bundle's folder, a folder of many, or a zip"
    add("--verify", metavar="PATH", type=Path, help=bundles)
    add("--no-verify", action="store_true", help="do not check the new bundle at the end")
    add("--quiet", action="store_true", help="print nothing but the paths and errors")


def parse_options(argv=None):
    """The Options of a command line. Argparse ends the process where it cannot be read; InputError where
    flags do not go together or a value cannot be used."""
    parser = make_parser()
    args = parser.parse_args(argv)
    _check_empty(sys.argv[1:] if argv is None else argv)
    if args.verify is None and args.student_id is None and not args.check:
        parser.error("--student-id ID is needed")
    check_name(args.name or "")
    settings = tuple(parse_setting(text) for text in args.set)
    if args.seed is not None:
        settings += (("seed", args.seed),)
    values = {name: getattr(args, name) for name in Options.__dataclass_fields__ if hasattr(args, name)}
    values |= {
        "student_id": check_student_id(args.student_id) if args.student_id is not None else None,
        "limits": limits_of(args.limit),
        "choices": choices_of(args),
        "recipe_name": Path(args.recipe).name,  # of a file with its .toml
        "recipe": load_recipe(args.recipe, settings),
        "settings": settings,
        "free": free_names(args.recipe, settings),  # a file of that name stands
    }
    options = Options(**values)
    _check_together(options, _given(parser, argv))
    return options


def _given(parser, argv):
    """The flags that a command line names, also those with the value that is their default."""
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    named = vars(parser.parse_args(argv))
    return {action.option_strings[0] for action in parser._actions if action.dest in named}


READING = {"--data", "--limit", "--labels", "--include", "--exclude", "--group"}
TRAINING = READING | {"--recipe", "--set", "--seed", "--precision", "--study", "--budget"}
PREDICTING = {"--predict", "--threshold", "--student-id", "--output-dir", "--limit", "--device", "--quiet"}
STUDIES = {"--diary", "--compare"}


def _check_empty(argv):
    """InputError for a flag with an empty value, as of a shell's variable that is not set."""
    empty = {flag for flag, value in itertools.pairwise(argv) if value == "" and flag.startswith("--")}
    empty |= {text[:-1] for text in argv if re.fullmatch("--[a-z-]+=", text)}
    if empty := empty - {"--name", "--student-id"}:  # of an id it is said what it may be
        raise InputError(f"the value of {_list(empty)} is empty: give one, or leave the flag out")


def _check_together(options, given):
    """InputError for flags that would be ignored, or do not go together."""
    measured = TRAINING | {"--device", "--resume", "--force", "--no-verify", "--tensorboard"}
    reading = READING | {"--check", "--recipe", "--set", "--seed", "--student-id", "--quiet"}
    resumed = "--resume goes on with the run's own data, recipe, precision and studies"
    for asked, ignored, why in (
        (options.resume, given & (TRAINING | STUDIES), resumed),
        (options.report_only, given & measured, "--report-only draws what was measured"),
        (options.check, given - reading, "--check only says how the data are understood"),
        (options.predict, given - PREDICTING, "--predict only asks a finished model"),
        (
            options.verify,
            given - {"--verify", "--data", "--limit", "--quiet"},
            "--verify only checks bundles",
        ),
    ):
        if asked and ignored:
            raise InputError(f"{why}: leave {_list(ignored)} out")
    if options.report_only and options.makes_studies:
        raise InputError("--report-only makes no study: name the JSON of one, --diary JSON or --compare JSON")
    if options.budget and not options.study:
        raise InputError("--budget goes with --study")
    if options.threshold is not None and not options.predict:
        raise InputError("--threshold goes with --predict")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise InputError(f"--threshold {options.threshold:g}: a confidence is from 0 to 1")
    if options.onnx is not None and options.onnx < 1:
        raise InputError(f"--onnx {options.onnx}: an opset is a number such as 18")
    if options.onnx:
        check_packages("--onnx", ("onnx", "onnxscript", "onnxruntime"))
    if options.tensorboard:
        check_packages("--tensorboard", ("tensorboard",))


def _list(flags):
    *most, last = sorted(flags)
    return f"{', '.join(most)} and {last}" if most else last
