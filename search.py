"""Search for a better recipe with Optuna (Akiba et al. 2019, arXiv:1907.10902), in one process or several.

Values are proposed by the tree-structured Parzen estimator, hopeless trials end early by the median
rule. All that is known of a study lies in its storage, a file or a database: processes that open the
same one share the work.
"""

import contextlib
import dataclasses
import datetime
import math
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from recipe import InputError

optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it says, this module says in its own lines


class Numbers(NamedTuple):
    low: float
    high: float
    log: bool = False  # searched by its logarithm
    off: bool = False  # 0 may be chosen too, and means: without


# What is searched: all of this that `--set` does not fix. Where the recipe's own value lies outside,
# the range is widened to it. Epochs and image size stay: more of them costs time and is rarely worse.
SPACE = {
    # model
    "patch_size": range(4, 21),  # here: patches a side; those are taken that divide the image
    "dim": (64, 96, 128, 192, 256),
    "depth": Numbers(2, 10),
    "heads": (2, 4, 8),
    "dim_head": (16, 32, 64),
    "mlp_dim": (128, 256, 512, 1024),
    "pool": ("cls", "mean"),
    "dropout": Numbers(0.0, 0.3),
    "emb_dropout": Numbers(0.0, 0.3),
    # images
    "standardize": (False, True),
    "flip": (False, True),
    "transpose": (False, True),
    "crop": Numbers(0.0, 0.2),
    "brightness": Numbers(0.0, 0.3),
    "contrast": Numbers(0.0, 0.3),
    "mixup": Numbers(0.0, 1.0),
    # optimisation
    "batch_size": (16, 32, 64, 128, 256),  # those that the training images fill
    "muon_learning_rate": Numbers(2e-3, 5e-2, log=True, off=True),
    "learning_rate": Numbers(1e-4, 5e-3, log=True),
    "weight_decay": Numbers(1e-4, 0.5, log=True, off=True),
    "warmup_epochs": Numbers(0.0, 10.0),
    "label_smoothing": Numbers(0.0, 0.2),
}
FIRST = 5  # complete trials before any is ended early
FEWEST = 10  # complete trials that importances are computed from

BEAT = 10  # seconds between the signs of life of a running trial
GRACE = 60  # seconds without one after which its process is taken for lost


class Budget(NamedTuple):
    trials: int | None  # finished trials in the study, of all processes together
    seconds: float | None  # of this process


class TimeUp(Exception):
    pass


def parse_budget(text):
    """Budget of "40" (trials), "90s", "10m" or "2h". InputError if it is none of these or nothing."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or not float(match[1] or match[2]):
        raise InputError(
            f"--budget {text}: give a number of trials such as 40, or a time such as 90s, 10m, 2h"
        )
    if match[1]:
        return Budget(int(match[1]), None)
    return Budget(None, float(match[2]) * {"s": 1, "m": 60, "h": 3600}[match[3]])


# The space of one study.


def _switch(name):
    return f"use {name}"


def space_of(base, fixed, images):
    """{parameter: Optuna distribution} around the recipe `base`, without the names in `fixed`.

    A value that may be off has a parameter "use NAME" beside its own. images: number trained on.
    """
    space = {}
    for name, allowed in SPACE.items():
        value = getattr(base, name)
        if name in fixed:
            continue
        if name == "patch_size":
            allowed = [base.image_size // n for n in allowed if base.image_size % n == 0]
        if name == "batch_size":
            allowed = [size for size in allowed if size <= images]
        if not isinstance(allowed, Numbers):
            choices = sorted({*allowed, value})
            if len(choices) > 1:
                space[name] = CategoricalDistribution(choices)
            continue
        if allowed.off:
            space[_switch(name)] = CategoricalDistribution([False, True])
        inside = [allowed.low, allowed.high] if allowed.off and not value else [*allowed[:2], value]
        kind = IntDistribution if isinstance(value, int) else FloatDistribution
        space[name] = kind(min(inside), max(inside), log=allowed.log)
    return space


def params_of(base, space):
    """The parameters that give the recipe `base` itself."""
    params = {}
    for name in space:
        value = getattr(base, name.removeprefix("use "))
        if name.startswith("use "):
            params[name] = bool(value)
        elif value or _switch(name) not in space:
            params[name] = value
    return params


def suggest(trial, space):
    """Let Optuna choose all parameters; a value that is switched off is not asked for."""
    for name, kind in space.items():
        if _switch(name) in space and not trial.params[_switch(name)]:
            continue
        if isinstance(kind, CategoricalDistribution):
            trial.suggest_categorical(name, kind.choices)
        elif isinstance(kind, IntDistribution):
            trial.suggest_int(name, kind.low, kind.high)
        else:
            trial.suggest_float(name, kind.low, kind.high, log=kind.log)


def changes_of(params, base):
    """{name: value} in which the recipe of these parameters differs from `base`; three digits suffice."""
    values = {}
    for name, value in params.items():
        if name.startswith("use "):
            if not value:
                values[name.removeprefix("use ")] = 0.0
        elif value != getattr(base, name):
            values[name] = float(f"{value:.3g}") if isinstance(value, float) else value
    return {name: value for name, value in values.items() if value != getattr(base, name)}


# Trials that are shared among processes. Optuna's own heartbeat works in databases only, not in the
# journal file; this one is written as a trial's attribute and works in both.


def is_counted(trial):
    """Whether the trial has an end that counts for the budget: not one that was put back in the queue."""
    if trial.state != TrialState.FAIL:
        return trial.state.is_finished()
    about = trial.user_attrs
    return "failure" in about or ("put_back" not in about and about.get("lost", 0) > 0)


def put_back(study, trial, lost=0):
    """End a running trial and queue its values once more. False if it ended meanwhile.

    A trial whose process is lost a second time stays failed: perhaps its values are the cause, such as a
    model that fills the memory until the system kills the process.
    """
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        return False  # another process was first
    lost_before = trial.user_attrs.get("lost", 0)
    params = trial.system_attrs.get("fixed_params", {}) | trial.params
    if params and not (lost and lost_before):
        about = {"again": trial.number, "lost": lost_before + lost}
        if trial.user_attrs.get("base"):
            about["base"] = True
        study.enqueue_trial(params, user_attrs=about)
    return True


def stop_trial(study, trial):
    """Put back a trial of this process."""
    with contextlib.suppress(UpdateFinishedTrialError):  # it was taken over
        trial.set_user_attr("put_back", True)
        put_back(study, study.trials[trial.number])


def take_over_lost(study, signs, say):
    """Put back trials that gave no sign of life for GRACE seconds.

    `signs` keeps {number: (last sign, when it was first seen)} between calls. The time is this process's
    own: clocks of other machines may differ.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        sign, now = trial.user_attrs.get("seen"), time.monotonic()
        if signs.get(trial.number, ("",))[0] != sign:
            signs[trial.number] = sign, now
        elif now - signs[trial.number][1] > GRACE and put_back(study, trial, lost=1):
            again = "it failed" if trial.user_attrs.get("lost") else "its values are tried once more"
            say(f"trial {trial.number}: its process {trial.user_attrs.get('worker', '')} is lost; {again}")


@contextlib.contextmanager
def signs_of_life(trial):
    """Every BEAT seconds write down that the trial is being worked on."""
    trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
    trial.set_user_attr("seen", time.time())
    over = threading.Event()

    def write():
        while not over.wait(BEAT):
            with contextlib.suppress(Exception):  # what is wrong with the storage, the trial itself will meet
                trial.set_user_attr("seen", time.time())

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def next_trial(study, budget, deadline, signs, say):
    """The next trial to run, or None when the budget is used up. `signs` as for take_over_lost.

    While others run the last trials of the budget this waits: theirs might be lost.
    """
    waits = False
    while time.monotonic() < deadline:
        take_over_lost(study, signs, say)
        trials = study.get_trials(deepcopy=False)
        counted = sum(map(is_counted, trials))
        if budget.trials and counted >= budget.trials:
            return None
        running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        if not budget.trials or counted + len(running) < budget.trials:
            trial = study.ask()
            if not budget.trials:
                return trial
            # Another process may have asked at the same moment for the same last place.
            trials = study.get_trials(deepcopy=False)
            before = [t for t in trials if t.state == TrialState.RUNNING and t.number < trial.number]
            if sum(map(is_counted, trials)) + len(before) < budget.trials:
                return trial
            stop_trial(study, trial)
        elif not waits:
            waits = True
            say(f"waits for the last trials, which other processes run: {', '.join(map(str, running))}")
        time.sleep(0.5)
    return None


def was_stopped(error):
    """Whether an error only follows from a Ctrl-C, such as one that came while Optuna held its lock."""
    while error := error.__cause__ or error.__context__:
        if isinstance(error, KeyboardInterrupt):
            return True
    return False


# One trial.


def score_of(row, images):
    """What a trial is judged by: the share of right answers, then the probability given to the true class.

    Accuracy is what the recipe is for, but on small sets it takes few values and many trials tie. So
    exp(-cross-entropy), from 0 to 1, is added like a part of one image: it decides between equals and
    never outweighs an image. Cross-entropy alone would rather judge label smoothing and mixup, which
    make a model less sure on purpose.
    """
    right = round(row["test_accuracy"] * images)
    return (right + math.exp(-row["test_loss"])) / (images + 1)


def run_trial(study, trial, images, base, space, deadline):
    """Train the trial's recipe on images.train, score images.test each epoch, and tell the study."""
    import torch

    import data
    import train
    from machine import check_memory

    def tick():
        # The first result is waited for, however late: else a short budget would leave none.
        if time.monotonic() > deadline and study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            raise TimeUp

    device = train.choose_device()
    precision = train.choose_precision("auto", device)
    model = loaders = rows = last = None
    try:
        suggest(trial, space)
        recipe = dataclasses.replace(base, **changes_of(trial.params, base))
        check_memory(recipe, device, precision, len(images.train.files), len(images.classes))
        model = train.make_model(recipe, len(images.classes)).to(device)
        loaders = data.make_loaders(images, recipe, device)
        rows = train.fit(model, *loaders, recipe, precision=precision, log=lambda line: None, tick=tick)
        for row in rows:
            if not math.isfinite(row["test_loss"]):
                raise InputError(f"the validation loss became {row['test_loss']}")
            reported = score_of(row, len(images.test.files))
            trial.report(reported, row["epoch"])
            last = row["epoch"] == recipe.epochs
            if not last and not trial.user_attrs.get("base") and trial.should_prune():
                break
    except UpdateFinishedTrialError:
        raise
    except (InputError, ValueError, RuntimeError, MemoryError) as error:
        if was_stopped(error):
            raise
        model = loaders = rows = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
        trial.set_user_attr("failure", f"{type(error).__name__}: {error}".splitlines()[0])
        return study.tell(trial, state=TrialState.FAIL)
    for name in ("accuracy", "loss"):
        trial.set_user_attr(name, row[f"test_{name}"])
    trial.set_user_attr("precision", precision)
    if not last:
        return study.tell(trial, state=TrialState.PRUNED)
    return study.tell(trial, reported)


# The study.


def open_storage(storage):
    """Optuna's storage at a path (a journal file) or a URL (a database). InputError if there is none."""
    if "://" not in str(storage):
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        path = Path(storage)
        if not path.parent.is_dir():
            raise InputError(f"--storage {path}: there is no folder {path.parent}")
        lock = JournalFileOpenLock(str(path)) if os.name == "nt" else None  # no symbolic links there
        try:
            return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"can't use {path} as a study's journal: {error}") from None
    for attempt in range(4):
        try:
            # A server may close a connection that an epoch leaves idle: look before using it.
            return optuna.storages.RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})
        except Exception as error:
            # Processes that start together all find an empty database and make the same tables.
            if attempt == 3 or isinstance(error, (ImportError, ValueError)):
                reason = str(error).strip().splitlines()[0]
                raise InputError(f"can't open the database of --storage: {reason}") from None
            time.sleep(1 + attempt)


def open_study(storage, name, settings, first, epochs):
    """The study of that name, new or joined. InputError if it was begun with other settings.

    first: the parameters of its first trial.
    """
    made = {
        "storage": storage,
        "study_name": name,
        "direction": "maximize",
        "pruner": optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=max(1, epochs // 4)),
        "sampler": optuna.samplers.TPESampler(n_startup_trials=FEWEST),
    }
    try:
        study = optuna.create_study(**made)
        study.enqueue_trial(first, user_attrs={"base": True})
        study.set_user_attr("settings", settings)  # the last step: others wait for it
        return study
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.create_study(**made, load_if_exists=True)
    patience = time.monotonic() + 10
    while "settings" not in study.user_attrs:
        if time.monotonic() > patience:
            raise InputError(f"the study {name!r} was never set up: remove it, or name another --output")
        time.sleep(0.2)
    theirs = study.user_attrs["settings"]
    if theirs != settings:
        other = [
            f"{key} {theirs.get(key)} there, {settings.get(key)} here"
            for key in sorted({*theirs, *settings})
            if theirs.get(key) != settings.get(key)
        ]
        raise InputError(
            f"the study {name!r} was begun with other settings ({'; '.join(other)}): "
            "give the same, or name another --output"
        )
    return study


def best_of(study):
    """The best complete trial, or None."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: trial.value, default=None)


def _duration(seconds):
    hours, minutes = divmod(max(0, round(seconds)) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {round(seconds) % 60} s"


def _line(study, trial, budget, deadline, start, already):
    about, best = trial.user_attrs, best_of(study)
    if trial.state == TrialState.FAIL:
        result = f"failed   {about['failure']}"
    else:
        state = trial.state.name.lower()
        result = f"{state:8} {about['accuracy']:.2%}, loss {about['loss']:.4f}"
        if trial.state == TrialState.PRUNED:
            result += f" at epoch {trial.last_step}"
    if budget.trials:
        counted = sum(map(is_counted, study.get_trials(deepcopy=False)))
        pace = (time.monotonic() - start) / max(1, counted - already)
        left = f"{counted}/{budget.trials} trials, about {_duration(pace * (budget.trials - counted))} left"
    else:
        left = f"{_duration(max(0, deadline - time.monotonic()))} left"
    so_far = f"best {best.user_attrs['accuracy']:.2%} (trial {best.number}); " if best else ""
    return f"trial {trial.number:3}  {result}; {so_far}{left}"


def search(images, base, space, budget, study, say):
    """Run trials of the study until the budget is used up. images: Data, its `test` to validate on."""
    start = time.monotonic()
    deadline = start + budget.seconds if budget.seconds else math.inf
    already = sum(map(is_counted, study.get_trials(deepcopy=False)))
    signs = {}
    while trial := next_trial(study, budget, deadline, signs, say):
        try:
            with signs_of_life(trial):
                done = run_trial(study, trial, images, base, space, deadline)
        except UpdateFinishedTrialError:
            say(f"trial {trial.number}: another process took it over, since this one gave no sign of life")
        except (Exception, KeyboardInterrupt) as stop:
            by_hand = isinstance(stop, KeyboardInterrupt) or was_stopped(stop)
            if not by_hand and not isinstance(stop, TimeUp):
                raise
            stop_trial(study, trial)
            if by_hand:
                raise KeyboardInterrupt from None
            say(f"trial {trial.number}  stopped, time is up; the same command begins with it again")
        else:
            say(_line(study, done, budget, deadline, start, already))


def importances(study):
    """{parameter: share of the importance}, largest first, by PED-ANOVA (Watanabe et al. 2023,
    arXiv:2304.10255); None from too few or equal trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < FEWEST or len({trial.value for trial in complete}) < 2:
        return None
    judge = optuna.importance.PedAnovaImportanceEvaluator()
    shares = optuna.importance.get_param_importances(study, evaluator=judge)
    return {name: float(share) for name, share in shares.items()}


def describe_trial(trial, base):
    """A trial as a JSON-ready row."""
    about, failed = trial.user_attrs, trial.state == TrialState.FAIL
    state = trial.state.name.lower()
    if failed:
        state = "failed" if is_counted(trial) else "put back"
    complete = trial.datetime_complete
    return {
        "number": trial.number,
        "state": state,
        "base": bool(about.get("base")),
        "again": about.get("again"),  # the number of the trial whose values these are
        "changed": changes_of(trial.params, base),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "accuracy": about.get("accuracy"),
        "loss": about.get("loss"),
        "epochs": len(trial.intermediate_values),
        "seconds": (complete - trial.datetime_start).total_seconds() if complete else None,
        "failure": about.get("failure", "its process was lost twice") if state == "failed" else None,
        "worker": about.get("worker"),
        "precision": about.get("precision"),
        "date": complete.isoformat(timespec="seconds") if complete else None,
    }


def write_results(path, study, base, settings, space, about):
    """The study as JSON at `path`, and the best recipe as .toml beside it. -> (record, its path or None)"""
    from record import write_record, write_whole

    rows = [describe_trial(trial, base) for trial in study.get_trials(deepcopy=False)]
    best = best_of(study)
    record = about | {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "optuna": optuna.__version__,
        "settings": settings,
        "recipe": base.values(),
        "searched": {name: str(kind) for name, kind in space.items()},
        "best": None if best is None else best.number,
        "importances": importances(study),
        "trials": rows,
    }
    write_record(path, record)
    if best is None:
        return record, None
    row, target = rows[best.number], path.with_suffix(".toml")
    lines = [
        f"# The best of {sum(row['state'] == 'complete' for row in rows)} complete trials of a search, "
        f"trial {best.number}: {row['accuracy']:.2%} on the validation part.",
        "#",
        f"#     python run.py --student-id 0812345 --data dataset.zip --recipe {target.name}",
        "#",
    ]
    found = dataclasses.replace(base, **row["changed"])
    write_whole(target, "\n".join(lines) + "\n" + found.as_toml())
    return record, target


def summary(record):
    """A search for the report, JSON-ready: its trials counted by how they ended, the recipe's own score and
    the best one's on the validation part, what the best changed, and the importances."""
    rows = record["trials"]
    ended = [row for row in rows if row["state"] in ("complete", "pruned", "failed")]
    shown = ("number", "changed", "accuracy", "loss", "epochs")
    best = rows[record["best"]]
    base = next((row for row in rows if row["base"] and row["state"] == "complete"), None)
    return {
        "recipe": record["recipe"],
        "machine": record["machine"],
        "date": record["date"],
        "searched": list(record["searched"]),
        "folds": record["settings"]["folds"],
        "data": {"name": None, "fingerprint": record["settings"]["data"]},
        "states": {
            state: sum(row["state"] == state for row in ended) for state in ("complete", "pruned", "failed")
        },
        "seconds": sum(row["seconds"] for row in ended),
        "base": base and {name: base[name] for name in shown},
        "best": {name: best[name] for name in shown},
        "importances": record["importances"],
    }


def table_of(record):
    """The best recipe beside the base, as lines."""
    rows = record["trials"]
    best = rows[record["best"]]
    base = next((row for row in rows if row["base"] and row["state"] == "complete"), None)
    shares = record["importances"] or {}
    yield f"{'':22} {'recipe':>10} {'trial ' + str(best['number']):>10}"
    for name, form in (("accuracy", ".2%"), ("loss", ".4f")):
        before = format(base[name], form) if base else "-"
        yield f"{'validation ' + name:22} {before:>10} {format(best[name], form):>10}"
    for name, value in best["changed"].items():
        yield f"{name:22} {record['recipe'][name]!s:>10} {value!s:>10}"
    if not best["changed"]:
        yield "no trial was better than the recipe itself"
    if shares:
        most = [f"{name} {share:.0%}" for name, share in list(shares.items())[:5]]
        yield f"what mattered most (PED-ANOVA): {', '.join(most)}"
