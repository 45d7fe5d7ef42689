"""The stages of a run between its options and its report: check, read, build, train, evaluate.

Each is a function that takes what the last ones returned; run.py calls them in order.
"""

import contextlib
import csv
import dataclasses
import io
import tempfile
import time
from pathlib import Path

import torch
import torchinfo

from lab import inspection, intake, scores
from lab.checkpoint import Checkpoint
from lab.console import clock
from lab.errors import InputError, first_of
from lab.files import write_whole
from lab.machine import (
    check_memory,
    choose_device,
    choose_precision,
    describe_machine,
    give_back_memory,
    processes,
)
from lab.record import EpochRow, ModelFacts, NamedRecipe, TrainingFacts
from lab.training import epochs, prepare, score, try_steps

LONG = 600  # seconds of training that a person is warned of


def check_machine(options, screen):
    """-> (torch.device, Machine) of this run. InputError where it cannot train the recipe."""
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    if not options.resume:
        check_memory(options.recipe, device, precision)
    machine = describe_machine(device, precision)
    machine.processes = processes()
    screen.say(
        f"{device.type} ({machine.gpu or f'{machine.processor}, {machine.threads} threads'}), {precision}"
        f"{f', {machine.processes} processes train together' * (machine.processes > 1)}"
    )
    return device, machine


def begin(options, staging, start, device, screen):
    """The Checkpoint of a run: a new one from `start`, or that of the interrupted run to be resumed."""
    if not options.resume:
        return Checkpoint(staging.checkpoint, start)
    saved = Checkpoint.load(staging.checkpoint)
    saved.start.precision = choose_precision(saved.start.precision, device)
    saved.start.name = options.name or saved.start.name
    screen.say(
        f"goes on after epoch {len(saved.history)} of {saved.start.recipe.values.epochs}, recipe "
        f"{saved.start.recipe.name}, {saved.start.precision}"
    )
    return saved


def read(options, staging, start, screen):
    """The Images of a run. Notes in `start` where they are, so that a resumed run finds them again.

    InputError as lab.intake has it, or where they are not those that the run was started with.
    """
    run = staging.run
    if start.source:
        source = start.source._replace(folder=run / start.source.folder)
    else:
        source = intake.open_source(options.data, run, options.limits)
        place, home = Path(source.folder).resolve(), run.resolve()
        # Relative where it can be, as the run folder moves when it is published.
        place = place.relative_to(home) if place.is_relative_to(home) else place
        start.source = source._replace(folder=str(place))
    with screen.count("reading images") as tick:
        images = intake.read_images(
            source, start.recipe.values, run / "dataset_split", tick, start.choices, frozenset(start.free)
        )
    facts = images.facts
    if start.fingerprint and facts.fingerprint != start.fingerprint:
        raise InputError(f"the images in {source.folder} are others now: run without --resume")
    start.fingerprint = facts.fingerprint  # from here on the checkpoint knows its images
    show_data(facts, screen)
    if start.free:
        start.recipe = NamedRecipe(start.recipe.name, *images.fit)
        start.free = []  # a run that is resumed has the recipe that it began with
        show_fit(start.recipe, screen)
    give_back_memory()
    return images


def check_data(options, screen):
    """Say how the data are understood, and write nothing: --check."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        source = intake.open_source(options.data, run, options.limits)
        with screen.count("reading images") as tick:
            images = intake.read_images(
                source, options.recipe, run / "split", tick, options.choices, options.free
            )
    show_data(images.facts, screen)
    show_fit(NamedRecipe(options.recipe_name, *images.fit), screen)


def show_data(facts, screen):
    """The classes with their counts, what the model is shown, and all files that are not used."""
    if facts.demonstration:
        screen.say("demonstration images, drawn by a program: name your own with --data")
    train, test = facts.counts["train"], facts.counts["test"]
    rows = [(name, str(train[name]), str(test[name])) for name in facts.classes]
    totals = str(sum(train.values())), str(sum(test.values()))
    screen.table(("class", "training", "test"), [*rows, (f"{len(rows)} classes", *totals)])
    for what, counted in (("sizes", facts.sizes), ("modes", facts.modes)):
        screen.say(f"{what}: {first_of([f'{name} ({n})' for name, n in counted])}")
    screen.say(f"the model is shown: {facts.presented}")
    if copies := len(facts.same_pixels.files):
        screen.say(f"{copies} copies of equal pixels, each with its like on one side")
    for row in facts.kept_together:
        groups = f"{row.groups} group{'s' * (row.groups != 1)}"
        screen.say(f"{row.images} images in {groups}, each on one side: {row.reason}, as {row.example}")
    if facts.from_split:
        screen.say(
            "the submitted code cannot choose these images itself: it takes run/dataset_split as it is"
        )
    for row in facts.left_out:
        screen.say(row.told, "yellow")
    for file in facts.unreadable:
        screen.say(f"left out, unreadable: {file.file} ({file.reason})", "yellow")
    for line in facts.contradictions[:5]:
        screen.say(f"the same picture in two classes: {line}", "yellow")
    if (more := len(facts.contradictions) - 5) > 0:
        screen.say(f"and {more} more such contradictions", "yellow")
    for line in facts.notes:
        screen.say(line, "yellow")


def show_fit(recipe, screen):
    """The values of a NamedRecipe that were fitted to the images."""
    for values, reason in recipe.fitted:
        words = ", ".join(f"{name} = {str(value).lower()}" for name, value in values)
        screen.say(f"fitted to these images: {words} ({reason})")


def describe_model(model):
    """The ModelFacts of a model, as torchinfo summarises it."""
    summary = torchinfo.summary(model, depth=2, verbose=0)  # two levels, as in the assignment
    return ModelFacts(summary.total_params, str(summary))


def build(images, start, device, screen):
    """-> (training.Setup, ModelFacts). InputError where the memory is too small."""
    recipe = start.recipe.values
    check_memory(recipe, device, start.precision, len(images.train), len(images.facts.classes))
    setup = prepare(images.train, images.test, recipe, device, start.precision)
    facts = describe_model(setup.model)
    screen.say(f"ViT with {facts.parameters:,} parameters")
    return setup, facts


def _announce(setup, recipe, done, screen):
    """Say how long the training will take, from trial steps, which also find what fits in the memory."""
    left = recipe.epochs - done
    if not left:
        return
    seconds = try_steps(setup, recipe, processes()) * left / recipe.epochs
    screen.say(f"{left} epochs, about {clock(seconds)} here")
    if seconds > LONG:
        screen.say(
            "long: Ctrl-C stops, and --resume goes on; --recipe default, --set epochs=N or a GPU take less",
            "yellow",
        )


@contextlib.contextmanager
def _followed(run, history, tensorboard):
    """A function that adds an EpochRow to run/history.csv, and if wanted to run/tensorboard/, at once, for
    programs that follow the training. `history`: the rows of a run that is resumed."""
    writer = None
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(run / "history.csv", "w", newline="", encoding="utf-8"))
        table = csv.writer(file, lineterminator="\n")
        table.writerow(field.name for field in dataclasses.fields(EpochRow))
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = stack.enter_context(SummaryWriter(run / "tensorboard", purge_step=len(history) + 1))

        def add(row):
            values = dataclasses.asdict(row)
            table.writerow(values.values())
            file.flush()
            if writer:
                for name, value in values.items():
                    writer.add_scalar(name, value, row.epoch)
                writer.flush()

        table.writerows(dataclasses.astuple(row) for row in history)
        yield add


def train(setup, checkpoint, run, screen, tensorboard=False):
    """Train from where the checkpoint is -> (TrainingFacts, logits (n, classes) of the test images)."""
    recipe = checkpoint.start.recipe.values
    done = checkpoint.restore(setup)
    _announce(setup, recipe, done, screen)
    if processes() > 1 and done < recipe.epochs:
        from lab import distributed

        distributed.share(setup, recipe, done + 1)
    begun = last = time.perf_counter()
    log, logits = io.StringIO(), None
    screen.say(f"follow it in {run}: training.log, history.csv{', tensorboard' * tensorboard}")
    with (
        _followed(run, checkpoint.history, tensorboard) as follow,
        open(run / "training.log", "w", encoding="utf-8") as file,
        screen.training(recipe.epochs, len(setup.train_loader), done) as (tick, show),
    ):
        print(checkpoint.log, end="", file=file)
        for epoch in epochs(setup, recipe, first=done + 1, log=log, tick=tick):
            now, logits = time.perf_counter(), epoch.logits
            row = _row_of(epoch, len(setup.test_loader.dataset), now - last)
            print(log.getvalue(), end="", file=file, flush=True)
            checkpoint.log += log.getvalue()
            log.seek(log.truncate(0))
            checkpoint.history.append(row)
            follow(row)
            show(row)
            checkpoint.save(setup, now - begun)
            last = time.perf_counter()  # the next epoch does not pay for this checkpoint
        if setup.shared:
            distributed.part(setup)
        seconds = checkpoint.seconds + time.perf_counter() - begun
        print(f"Execution time: {seconds:5.2f} seconds", file=file)
    screen.say(f"{recipe.epochs} epochs in {seconds:.0f} s")
    if logits is None:  # the run was stopped after its last epoch
        logits = score(setup, recipe)
    give_back_memory()
    images = len(setup.train_loader.dataset) * recipe.epochs
    rate = images / sum(row.train_seconds for row in checkpoint.history)
    return TrainingFacts(seconds, rate, checkpoint.history), logits


def _row_of(epoch, test_images, seconds):
    """The EpochRow of a train.Epoch that took so many seconds with its scoring."""
    adamw, *muon = epoch.rates
    return EpochRow(
        epoch=epoch.number,
        learning_rate=adamw,
        muon_learning_rate=muon[0] if muon else 0.0,
        train_loss=epoch.train_loss,
        train_accuracy=epoch.train_accuracy,
        test_loss=epoch.test_loss,
        test_accuracy=epoch.correct / test_images,
        train_seconds=epoch.train_seconds,
        seconds=seconds,
    )


def evaluate(setup, logits, images, start, run, weights, screen):
    """Score the logits and write the weights to the file `weights` -> (Results, Shown)."""
    content = io.BytesIO()  # torch.save into a full disk says nothing that helps
    torch.save({name: value.cpu() for name, value in setup.model.state_dict().items()}, content)
    write_whole(weights, content.getvalue())
    test = images.test
    results = scores.score(logits.cpu().numpy(), test.labels.numpy(), test.classes, test.files)
    screen.say(
        f"test loss {results.loss:.4f}, {results.correct} of {results.total} right; {results.beside()}"
    )
    return results, inspection.look_into(setup.model, images, results.predictions, start.recipe.values, run)
