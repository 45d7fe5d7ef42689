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
import re
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from lab import findings, intake, training
from lab.console import clock
from lab.errors import InputError, said
from lab.files import write_whole
from lab.findings import StudyData, StudyMachine, Trial
from lab.record import Machine, as_json
from study import runs
from study.means import aligned, shown
from study.results import Value, check_folder, now, progress, read_results
from study.space import changes_of, space_of, suggest

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


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    command: ClassVar[str] = "python -m study search"
    what: str = "a search on a validation fold of the training split; the test split was not used"
    optuna: str = optuna.__version__
    machine: Machine
    settings: dict[str, Value | list[str]]  # trials are added only where all of these are the same
    found: findings.Search | None  # None where no trial is complete
    trials: list[Trial]


# One trial.


class TimeUp(KeyboardInterrupt):
    """A trial was stopped, not by Ctrl-C, but as the time of the search is over."""


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
    `deadline` is a time.monotonic().
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
    if "://" in storage:
        # A server may close a connection that an epoch leaves idle: look before using it.
        return _open_database(storage, pool_pre_ping=True)
    check_folder(Path(storage))
    if storage.endswith(".journal"):
        try:
            # Of Optuna's two locks the one that works on Windows too, which has no symbolic links.
            return JournalStorage(JournalFileBackend(storage, lock_obj=JournalFileOpenLock(storage)))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"cannot use {storage} as a study's journal: {error}") from None
    # timeout: seconds to wait for another process's write. isolation_level: Python's sqlite3 begins no
    # transaction of its own.
    how = {"timeout": 60, "isolation_level": None}
    database = _open_database(f"sqlite:///{Path(storage).resolve()}", connect_args=how)

    # Optuna reads a trial's state and then sets it, with SELECT FOR UPDATE, which SQLite lacks: two processes
    # could take the same trial from the queue, or put the same lost one back twice. So each transaction
    # begins with the write lock.
    @sqlalchemy.event.listens_for(database.engine, "begin")
    def begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return database


def _open_database(url, **options):
    for attempt in range(4):
        try:
            return RDBStorage(
                url,
                engine_kwargs=options,
                heartbeat_interval=BEAT,
                grace_period=GRACE,
                # Once: a trial that ends a second process may be the cause, by filling the memory.
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=1),
            )
        except Exception as error:
            # Processes that start together all find an empty database and make the same tables.
            if attempt == 3 or isinstance(error, (ImportError, ValueError)):
                why = said(error.__cause__ or error)  # the database's own words, where Optuna wraps them
                raise InputError(f"cannot open the study's database: {why}") from None
            time.sleep(1 + attempt)


def open_study(storage, name, settings, first, epochs):
    """The study of that name, new or joined. InputError if it was begun with other settings, a dict.

    first: the parameters of its first trial.
    """
    made = {
        "storage": storage,
        "study_name": name,
        "direction": "maximize",
        # In the first quarter, much of it warm-up, scores say little about the last ones.
        "pruner": optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=max(1, epochs // 4)),
        "sampler": optuna.samplers.TPESampler(n_startup_trials=FEWEST),
    }
    try:
        study = optuna.create_study(**made)
        study.set_user_attr("settings", settings)
        study.enqueue_trial(first, user_attrs={"base": True})
        return study
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.create_study(**made, load_if_exists=True)
    # None in the instant between the two lines above, in another process that was started with this one.
    theirs = study.user_attrs.get("settings", settings)
    other = [
        f"{key} {theirs.get(key)} there, {value} here"
        for key, value in sorted(settings.items())
        if theirs.get(key) != value
    ]
    if other:
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
    about = {"again": trial.number, "base": frozen.user_attrs.get("base", False)}
    study.enqueue_trial(frozen.system_attrs.get("fixed_params", {}) | frozen.params, user_attrs=about)


@contextlib.contextmanager
def stop_between_batches(objective):
    """Let a Ctrl-C end the trial after its batch; a second one ends at once.

    Raised anywhere, it could leave a transaction open, and this process would then wait for its own lock.
    """

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
    start, before = time.monotonic(), len(trials_in(study, *ENDED))
    objective.deadline = start + budget.seconds if budget.seconds else math.inf
    if budget.trials and before >= budget.trials:
        return

    def after_each(study, trial):
        best, ended = best_of(study), len(trials_in(study, *ENDED))
        left = f"{clock(max(0, objective.deadline - time.monotonic()))} left" if budget.seconds else ""
        left = left or progress(before, ended - before, budget.trials, start)
        so_far = f"best {best.user_attrs['accuracy']:.2%} (trial {best.number}); " if best else ""
        say(f"trial {trial.number:3}  {_outcome(trial)}; {so_far}{left}")
        if budget.trials and ended >= budget.trials:
            study.stop()

    while True:
        seconds = max(0.0, objective.deadline - time.monotonic()) if budget.seconds else None
        try:
            with stop_between_batches(objective):
                return study.optimize(objective, timeout=seconds, callbacks=[after_each])
        except KeyboardInterrupt as stop:
            put_back(study, objective.trial)
            if not isinstance(stop, TimeUp):
                raise
            number = objective.trial.number
            return say(f"trial {number:3}  stopped, time is up; the same command begins with it again")
        except (UpdateFinishedTrialError, ValueError):  # ValueError: so says Optuna where a result comes late
            number = objective.trial.number
            say(f"trial {number:3}  is no longer this process's, which gave no sign of life for a while")


def _outcome(trial):
    """How a trial ended, for its line."""
    about = trial.user_attrs
    if "failure" in about:
        return f"failed   {about['failure']}"
    end = f" at epoch {trial.last_step}" if trial.state == TrialState.PRUNED else ""
    return f"{trial.state.name.lower():8} {about['accuracy']:.2%}, loss {about['loss']:.4f}{end}"


# What was found.


def importances(study):
    """{parameter: share of the importance}, largest first, by Optuna's PED-ANOVA (Watanabe et al. 2023,
    arXiv:2304.10255); None from too few or equal trials."""
    complete = trials_in(study, TrialState.COMPLETE)
    if len(complete) < FEWEST or len({trial.value for trial in complete}) < 2:
        return None
    return optuna.importance.get_param_importances(study)


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
        accuracy=about.get("accuracy"),
        loss=about.get("loss"),
        epochs=len(trial.intermediate_values),
        seconds=(complete - trial.datetime_start).total_seconds() if complete else None,
        failure="its process was lost twice" if state == "lost" else about.get("failure"),
        precision=about.get("precision"),
    )


def write_results(path, study, base, settings, space, machine):
    """Write the study as JSON to `path`, and its best recipe as .toml beside it -> lab.findings.Search, or
    None where no trial is complete."""
    frozen = study.get_trials(deepcopy=False)
    retried, best = set(map(_again, frozen)), best_of(study)
    trials = [describe_trial(trial, base, retried) for trial in frozen]
    ended = [trial for trial in trials if trial.state in ("complete", "pruned", "failed")]
    of_base = next((trial for trial in ended if trial.base and trial.state == "complete"), None)
    found = best and findings.Search(
        recipe=base,
        machine=StudyMachine(machine.processor, machine.cores, machine.gpu),
        data=StudyData(settings["data"]),
        date=now(),
        searched=list(space),
        folds=settings["folds"],
        states={state: sum(t.state == state for t in ended) for state in ("complete", "pruned", "failed")},
        seconds=sum(trial.seconds for trial in ended),
        base=of_base,
        best=trials[best.number],
        importances=importances(study),
    )
    about = {"machine": machine, "settings": settings}
    write_whole(path, as_json(SearchResults(**about, found=found, trials=trials)))
    if found:
        head = (
            f"# The best of {found.states['complete']} complete trials of a search, trial {best.number}: "
            f"{found.best.accuracy:.2%} on the validation part.\n"
        )
        write_whole(path.with_suffix(".toml"), head + found_recipe(found).as_toml())
    return found


def found_recipe(found):
    """The Recipe of the best trial."""
    return dataclasses.replace(found.recipe, **found.best.changed)


def table_of(found):
    """The best recipe of a lab.findings.Search beside the recipe itself, as lines."""
    best, base = found.best, found.base
    table = [["", "recipe", f"trial {best.number}"]]
    for name, form in (("accuracy", ".2%"), ("loss", ".4f")):
        before = shown(base and getattr(base, name), form)
        table.append([f"validation {name}", before, format(getattr(best, name), form)])
    table += [[name, str(getattr(found.recipe, name)), str(value)] for name, value in best.changed.items()]
    yield from aligned(table)
    if not best.changed:
        yield "no trial was better than the recipe itself"
    if found.importances:
        most = [f"{name} {share:.0%}" for name, share in list(found.importances.items())[:5]]
        yield f"what mattered most (PED-ANOVA): {', '.join(most)}"


def search(where, base, fixed, folds, fold, budget, output, *, storage=None, say=print):
    """Search from the recipe `base` on one of so many folds, and write what is found -> lab.findings.Search.

    fixed: names of hyperparameters that keep their values; storage: as for open_storage, by default a
    SQLite file beside `output`. InputError also where no trial succeeded.
    """
    if output.exists():
        read_results(output, SearchResults)  # nothing else is written over
    machine, images = where.machine(), intake.load_images(where.data, base, where.limits, where.choices)
    parts = runs.fold_of(images.train, folds, fold)
    settings = {"data": images.facts.fingerprint, "folds": folds, "fold": fold, "fixed": sorted(fixed)}
    settings |= base.as_dict()
    space = space_of(base, fixed, len(parts[0]))
    first = {name: getattr(base, name) for name in space}  # the recipe itself
    try:
        opened = open_storage(storage or output.with_suffix(".db"))
        study = open_study(opened, output.stem, settings, first, base.epochs)
        try:
            run_trials(study, Objective(parts, base, space, where), budget, say)
        finally:
            found = write_results(output, study, base, settings, space, machine)
    except (OSError, RuntimeError, StorageInternalError) as error:
        reason = f"the study's storage failed ({said(error.__cause__ or error)})"
        raise InputError(f"{reason}: the same command goes on") from None
    if not found:
        raise InputError(f"no trial of the search succeeded: {output} says why; a larger budget tries more")
    say("\n".join(["", *table_of(found), f"{output}, and the recipe: {output.with_suffix('.toml')}"]))
    return dataclasses.replace(found, fresh=True, file=output.name)
