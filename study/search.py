"""Search for a better recipe with Optuna (Akiba et al. 2019, arXiv:1907.10902), in one process or several.

Values are proposed by the tree-structured Parzen estimator, hopeless trials end early by the median
rule. All that is known of a study lies in its storage, a file or a database: processes that open the
same one share the work. How trials of lost processes are found and tried again is Optuna's.

States of a trial: Optuna's PRUNED is both one that ended early and one that failed for its values, which
then says why in its attribute "failure": either counts. Optuna's FAIL is a trial that was interrupted, by
Ctrl-C, for lack of time, or with its process: it does not count, and its values are queued once more.
"""

import contextlib
import dataclasses
import math
import os
import re
import signal
import socket
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from lab import findings, training
from lab.console import clock
from lab.errors import InputError
from lab.files import write_whole
from lab.findings import SearchTrial, StudyData, StudyMachine
from lab.recipe import Recipe
from lab.record import Machine, as_json
from study import runs
from study.results import Value, check_folder, now, read_results
from study.space import changes_of, params_of, space_of, suggest

optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it says, this module says in its own lines
warnings.simplefilter("ignore", ExperimentalWarning)  # of the heartbeat, which is so called since 2021

FIRST = 5  # complete trials before any is ended early
FEWEST = 10  # complete trials that importances are computed from

BEAT = 10  # seconds between the signs of life of a running trial, in a database
GRACE = 60  # seconds without one after which its process is taken for lost

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)  # what counts


class Budget(NamedTuple):
    trials: int | None = None  # ended trials in the study, of all processes together
    seconds: float | None = None  # of this process


def parse_budget(text):
    """Budget of "40" (trials), "90s", "10m" or "2h". InputError if it is none of these or nothing."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or not float(match[1] or match[2]):
        raise InputError(
            f"--budget {text}: give a number of trials such as 40, or a time such as 90s, 10m, 2h"
        )
    if match[1]:
        return Budget(trials=int(match[1]))
    return Budget(seconds=float(match[2]) * {"s": 1, "m": 60, "h": 3600}[match[3]])


# The results file.


@dataclass(frozen=True)
class Settings:
    """What a study is about: trials are added to it only where all of this is the same."""

    data: str  # the fingerprint
    folds: int
    fold: int
    fold_seed: int
    fixed: list[str]  # names that are not searched


@dataclass(frozen=True)
class Trial:
    number: int
    state: str  # complete, pruned, failed; put back, lost; running, waiting
    base: bool  # the recipe itself
    again: int | None  # the number of the trial whose values these are
    changed: dict[str, Value]
    value: float | None
    accuracy: float | None
    loss: float | None
    epochs: int
    seconds: float | None
    failure: str | None
    worker: str | None
    precision: str | None
    date: str | None


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    command: ClassVar[str] = "python -m study search"
    what: str = "a search on a validation fold of the training split; the test split was not used"
    machine: Machine
    date: str
    optuna: str
    settings: Settings
    recipe: Recipe
    searched: dict[str, str]
    best: int | None
    importances: dict[str, float] | None
    trials: list[Trial] = field(default_factory=list)

    @property
    def base(self):
        """The trial of the recipe itself, if it is complete."""
        return next((trial for trial in self.trials if trial.base and trial.state == "complete"), None)


# One trial.


class TimeUp(Exception):
    pass


def score_of(correct, loss, images):
    """What a trial is judged by: the share of right answers, then the probability given to the true class.

    Accuracy is what the recipe is for, but on small sets it takes few values and many trials tie. So
    exp(-cross-entropy), from 0 to 1, is added like a part of one image: it decides between equals and
    never outweighs an image. Cross-entropy alone would rather judge label smoothing and mixup, which
    make a model less sure on purpose.
    """
    return (correct + math.exp(-loss)) / (images + 1)


class Objective:
    """A trial for study.optimize: trains its recipe on one part and scores the other each epoch.

    `trial` is the last one that was begun; `stopped` is set to have it end after the batch at hand.
    """

    def __init__(self, parts, base, space, where, deadline=math.inf):
        self.train_split, self.held_out = parts
        self.base, self.space, self.deadline = base, space, deadline
        self.device, self.precision = where.begin()
        self.trial, self.stopped = None, False

    def tick(self):
        """KeyboardInterrupt if the search was stopped."""
        if self.stopped:
            raise KeyboardInterrupt

    def __call__(self, trial):
        self.trial, images = trial, len(self.held_out)
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        trial.set_user_attr("precision", self.precision)
        suggest(trial, self.space)
        self.tick()
        # Errors of the training come out of epochs(), and not those of the storage, which end the search.
        for epoch in self.epochs(trial):
            trial.set_user_attr("accuracy", epoch.correct / images)
            trial.set_user_attr("loss", epoch.test_loss)
            value = score_of(epoch.correct, epoch.test_loss, images)
            trial.report(value, epoch.number)
            if epoch.number == self.base.epochs:
                return value
            if not trial.user_attrs.get("base") and trial.should_prune():
                raise optuna.TrialPruned
            # The first result is waited for, however late: else a short budget would leave none.
            if time.monotonic() > self.deadline and best_of(trial.study):
                raise TimeUp

    def epochs(self, trial):
        """The train.Epochs of the trial's recipe. What fails for its values is pruned, with the reason."""
        try:
            recipe = dataclasses.replace(self.base, **changes_of(trial.params, self.base))
            setup = runs.prepare(self.train_split, self.held_out, recipe, self.device, self.precision)
            for epoch in training.epochs(setup, recipe, tick=self.tick):
                if not math.isfinite(epoch.test_loss):
                    raise InputError(f"the validation loss became {epoch.test_loss}")
                yield epoch
        except runs.FAULTS as error:
            reason = runs.reason_of(error)
        else:
            return
        if self.device.type == "cuda":  # out here, where the error no longer holds the tensors
            runs.torch.cuda.empty_cache()
        trial.set_user_attr("failure", reason)
        raise optuna.TrialPruned


# The study.


def open_storage(storage):
    """Optuna's storage at a URL (a database), a path ending in .journal (a journal file), or another path
    (SQLite). InputError if it cannot be used."""
    storage = str(storage)
    if "://" not in storage:
        check_folder(Path(storage))
        if storage.endswith(".journal"):
            lock = JournalFileOpenLock(storage) if os.name == "nt" else None  # no symbolic links there
            try:
                return JournalStorage(JournalFileBackend(storage, lock_obj=lock))
            except (OSError, ValueError, KeyError) as error:
                raise InputError(f"cannot use {storage} as a study's journal: {error}") from None
        storage = f"sqlite:///{Path(storage).resolve()}"
    # A server may close a connection that an epoch leaves idle: look before using it.
    options = {"pool_pre_ping": True}
    if storage.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}  # seconds to wait for another process's write
    for attempt in range(4):
        try:
            database = RDBStorage(
                storage,
                engine_kwargs=options,
                heartbeat_interval=BEAT,
                grace_period=GRACE,
                # Once: a trial that ends a second process may be the cause, by filling the memory.
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=1),
            )
            break
        except Exception as error:
            # Processes that start together all find an empty database and make the same tables.
            if attempt == 3 or isinstance(error, (ImportError, ValueError)):
                reason = str(error.__cause__ or error).strip().splitlines()[0]
                raise InputError(f"cannot open the study's database: {reason}") from None
            time.sleep(1 + attempt)
    if storage.startswith("sqlite"):
        _lock_before_reading(database.engine)
    return database


def _lock_before_reading(engine):
    """Make each transaction of a SQLite database begin with the write lock.

    Optuna reads a trial's state and then sets it, with SELECT FOR UPDATE, which SQLite lacks: two processes
    could take the same trial from the queue, or put the same lost one back twice.
    """
    engine.dispose()  # connections made so far would not know

    @sqlalchemy.event.listens_for(engine, "connect")
    def connect(connection, record):
        connection.isolation_level = None  # Python's sqlite3 begins no transaction of its own

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def open_study(storage, name, settings, first, epochs):
    """The study of that name, new or joined. InputError if it was begun with other settings, a dict.

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
    while not (theirs := study.user_attrs.get("settings")):
        if time.monotonic() > patience:
            raise InputError(f"the study {name!r} was never set up: remove it, or name another results file")
        time.sleep(0.2)
    if theirs != settings:
        other = [
            f"{key} {theirs.get(key)} there, {settings.get(key)} here"
            for key in sorted({*theirs, *settings})
            if theirs.get(key) != settings.get(key)
        ]
        raise InputError(
            f"the study {name!r} was begun with other settings ({'; '.join(other)}): "
            "give the same, or name another results file"
        )
    return study


def trials_in(study, *states):
    return study.get_trials(deepcopy=False, states=states)


def best_of(study):
    """The best complete trial, or None."""
    return max(trials_in(study, TrialState.COMPLETE), key=lambda trial: trial.value, default=None)


def put_back(study, trial):
    """Queue the values of an interrupted trial of this process once more; it is the next to be run."""
    if trial is None:
        return
    frozen = study.trials[trial.number]
    if frozen.state == TrialState.RUNNING:
        study.tell(trial.number, state=TrialState.FAIL)
    elif frozen.state != TrialState.FAIL:
        return  # it had ended
    about = {"again": trial.number} | {key: True for key in ("base",) if frozen.user_attrs.get(key)}
    study.enqueue_trial(frozen.system_attrs.get("fixed_params", {}) | frozen.params, user_attrs=about)


def was_stopped(error):
    """Whether an error only follows from a Ctrl-C, such as one that came while Optuna held a file's lock."""
    while error := error.__cause__ or error.__context__:
        if isinstance(error, KeyboardInterrupt):
            return True
    return False


@contextlib.contextmanager
def stop_between_batches(objective):
    """Let a Ctrl-C end the trial after its batch; a second one ends at once.

    Raised anywhere, it could leave a transaction open, and this process would then wait for its own lock.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        objective.stopped = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_trials(study, objective, budget, say):
    """Run trials of the study until the budget is used up, or Ctrl-C."""
    start, already = time.monotonic(), len(trials_in(study, *ENDED))
    objective.deadline = start + budget.seconds if budget.seconds else math.inf
    if budget.trials and already >= budget.trials:
        return

    def tell(study, trial):
        say(f"trial {trial.number:3}  {_outcome(trial)}; {_so_far(study, budget, start, already)}")

    callbacks = [tell]
    if budget.trials:
        callbacks.append(optuna.study.MaxTrialsCallback(budget.trials, states=ENDED))
    while True:
        left = None if budget.trials else max(0.0, objective.deadline - time.monotonic())
        try:
            with stop_between_batches(objective):
                return study.optimize(objective, timeout=left, callbacks=callbacks)
        except TimeUp:
            put_back(study, objective.trial)
            number = objective.trial.number
            return say(f"trial {number:3}  stopped, time is up; the same command begins with it again")
        except (UpdateFinishedTrialError, ValueError):  # ValueError: so says Optuna where a result comes late
            number = objective.trial.number
            say(f"trial {number:3}  is no longer this process's, which gave no sign of life for a while")
        except (KeyboardInterrupt, OSError, RuntimeError, StorageInternalError) as error:
            if not isinstance(error, KeyboardInterrupt) and not was_stopped(error):
                raise
            put_back(study, objective.trial)
            raise KeyboardInterrupt from None


def _outcome(trial):
    """How a trial ended, for its line."""
    about = trial.user_attrs
    if "failure" in about:
        return f"failed   {about['failure']}"
    end = f" at epoch {trial.last_step}" if trial.state == TrialState.PRUNED else ""
    return f"{trial.state.name.lower():8} {about['accuracy']:.2%}, loss {about['loss']:.4f}{end}"


def _so_far(study, budget, start, already):
    """The best trial and what is left of the budget, for a trial's line."""
    best, passed = best_of(study), time.monotonic() - start
    so_far = f"best {best.user_attrs['accuracy']:.2%} (trial {best.number}); " if best else ""
    if not budget.trials:
        return f"{so_far}{clock(max(0, budget.seconds - passed))} left"
    ended = len(trials_in(study, *ENDED))
    left = passed / max(1, ended - already) * max(0, budget.trials - ended)
    return f"{so_far}{ended}/{budget.trials} trials, about {clock(left)} left"


# What was found.


def importances(study):
    """{parameter: share of the importance}, largest first, by PED-ANOVA (Watanabe et al. 2023,
    arXiv:2304.10255); None from too few or equal trials."""
    complete = trials_in(study, TrialState.COMPLETE)
    if len(complete) < FEWEST or len({trial.value for trial in complete}) < 2:
        return None
    judge = optuna.importance.PedAnovaImportanceEvaluator()
    shares = optuna.importance.get_param_importances(study, evaluator=judge)
    return {name: float(share) for name, share in shares.items()}


def _again(trial):
    """The number of the trial whose values these are, or None: put back here, or by Optuna."""
    history = RetryHeartbeatStaleTrialCallback.retry_history(trial)
    return history[-1] if history else trial.user_attrs.get("again")


def describe_trial(trial, base, retried):
    """The Trial of Optuna's; `retried` are the numbers of those that were put back in the queue."""
    about, complete = trial.user_attrs, trial.datetime_complete
    state = trial.state.name.lower()
    if trial.state == TrialState.FAIL:
        state = "put back" if trial.number in retried else "lost"
    elif "failure" in about:
        state = "failed"
    return Trial(
        number=trial.number,
        state=state,
        base=bool(about.get("base")),
        again=_again(trial),
        changed=changes_of(trial.params, base),
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        accuracy=about.get("accuracy"),
        loss=about.get("loss"),
        epochs=len(trial.intermediate_values),
        seconds=(complete - trial.datetime_start).total_seconds() if complete else None,
        failure="its process was lost twice" if state == "lost" else about.get("failure"),
        worker=about.get("worker"),
        precision=about.get("precision"),
        date=complete.isoformat(timespec="seconds") if complete else None,
    )


def write_results(path, study, base, settings, space, machine):
    """The study as JSON at `path`, and the best recipe, if any, as .toml beside it -> SearchResults."""
    trials = study.get_trials(deepcopy=False)
    retried, best = set(map(_again, trials)), best_of(study)
    results = SearchResults(
        machine=machine,
        date=now(),
        optuna=optuna.__version__,
        settings=settings,
        recipe=base,
        searched={name: str(kind) for name, kind in space.items()},
        best=None if best is None else best.number,
        importances=importances(study),
        trials=[describe_trial(trial, base, retried) for trial in trials],
    )
    write_whole(path, as_json(results))
    if best is not None:
        trial, target = results.trials[best.number], path.with_suffix(".toml")
        complete = sum(trial.state == "complete" for trial in results.trials)
        head = (
            f"# The best of {complete} complete trials of a search, trial {best.number}: "
            f"{trial.accuracy:.2%} on the validation part.\n#\n"
            f"#     python run.py --student-id 0812345 --data dataset.zip --recipe {target.name}\n#\n"
        )
        write_whole(target, head + found_recipe(results).as_toml())
    return results


def found_recipe(results):
    """The Recipe of the best trial."""
    return dataclasses.replace(results.recipe, **results.trials[results.best].changed)


def summary(results):
    """SearchResults -> lab.findings.Search. IndexError or TypeError where no trial is complete."""
    ended = [trial for trial in results.trials if trial.state in ("complete", "pruned", "failed")]

    def shown(trial):
        return SearchTrial(trial.number, trial.changed, trial.accuracy, trial.loss, trial.epochs)

    machine, states = results.machine, [trial.state for trial in ended]
    return findings.Search(
        recipe=results.recipe,
        machine=StudyMachine(machine.processor, machine.cores, machine.gpu),
        data=StudyData(results.settings.data),
        date=results.date,
        searched=list(results.searched),
        folds=results.settings.folds,
        states={state: states.count(state) for state in ("complete", "pruned", "failed")},
        seconds=sum(trial.seconds for trial in ended),
        base=results.base and shown(results.base),
        best=shown(results.trials[results.best]),
        importances=results.importances,
    )


def table_of(results):
    """The best recipe beside the base, as lines."""
    best, base = results.trials[results.best], results.base
    yield f"{'':22} {'recipe':>10} {'trial ' + str(best.number):>10}"
    for name, form in (("accuracy", ".2%"), ("loss", ".4f")):
        before = format(getattr(base, name), form) if base else "-"
        yield f"{'validation ' + name:22} {before:>10} {format(getattr(best, name), form):>10}"
    for name, value in best.changed.items():
        yield f"{name:22} {getattr(results.recipe, name)!s:>10} {value!s:>10}"
    if not best.changed:
        yield "no trial was better than the recipe itself"
    if results.importances:
        most = [f"{name} {share:.0%}" for name, share in list(results.importances.items())[:5]]
        yield f"what mattered most (PED-ANOVA): {', '.join(most)}"


def search(where, base, fixed, folds, fold, budget, output, *, storage=None, say=print):
    """Search from the recipe `base` on one fold, and write what was found to `output` -> SearchResults.

    fixed: names of hyperparameters that keep their values; storage: as for open_storage, by default a
    SQLite file beside `output`. InputError also where no trial succeeded.
    """
    check_folder(output)
    if output.exists():
        read_results(output, SearchResults)  # nothing else is written over
    machine, images = where.machine(), runs.load_images(where, base)
    parts = runs.fold_of(images.train, folds, fold)
    settings = Settings(images.facts.fingerprint, folds.count, fold, folds.seed, sorted(fixed))
    space = space_of(base, fixed, len(parts[0]))
    first, about = params_of(base, space), vars(settings) | base.as_dict()
    try:
        study = open_study(
            open_storage(storage or output.with_suffix(".db")), output.stem, about, first, base.epochs
        )
        try:
            run_trials(study, Objective(parts, base, space, where), budget, say)
        finally:
            results = write_results(output, study, base, settings, space, machine)
    except (OSError, RuntimeError, StorageInternalError) as error:
        if was_stopped(error):
            raise KeyboardInterrupt from None
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(f"the study's storage failed ({reason}): the same command goes on") from None
    if results.best is None:
        raise InputError(f"no trial of the search succeeded: {output} says why; a larger budget tries more")
    say("\n".join(["", *table_of(results), f"{output}, and the recipe: {output.with_suffix('.toml')}"]))
    return results
