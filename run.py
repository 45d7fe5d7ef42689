#!/usr/bin/env python3
"""From a zip of defect images to the homework's three files: report (PDF), code (.py), weights (.pth).

    python run.py --student-id 0812345 --data dataset.zip

The stages in order. What each does is in lab/stages.py and report/; imports stand where they are needed,
so that --help and a wrong flag are answered at once.
"""

import contextlib
import datetime
import signal
import sys
import tempfile
import time

from lab.bundle import bundle_names, check_output, file_name, redrawn, staged, zip_bundle
from lab.errors import exit_code
from lab.machine import leave, processes
from lab.options import parse_options


def train_and_report(options, screen):
    """The whole job, images to bundle -> Record. Nothing is in the output folder before all is done."""
    check_output(options)
    with screen.stage("Check"):
        import report
        from lab import stages
        from lab.record import Record, Student
        from study.findings import new_start

        report.check_report(options.answers, options.latex, options.notebook)
        device, machine = stages.check_machine(options, screen)
    start = None if options.resume else new_start(options, machine.precision, screen)
    with staged(options.folder, options.resume, options.again) as staging:
        check_output(options)  # another run may have ended since
        checkpoint = stages.begin(options, staging, start, device, screen)
        start, earlier = checkpoint.start, checkpoint.seconds
        with screen.stage("Data"):
            images = stages.read(options, staging, start, screen)
        with screen.stage("Model"):
            setup, model = stages.build(images, start, device, screen)
        with screen.stage("Training"):
            training, logits = stages.train(setup, checkpoint, staging.run, screen, options.tensorboard)
        screen.seconds["training"] += earlier
        staging.trained = True  # what follows can be done again
        with screen.stage("Evaluation"):
            weights = staging.folder / file_name(options.student_id, "pth")
            results, shown = stages.evaluate(setup, logits, images, start, staging.run, weights, screen)
        machine.precision = start.precision
        record = Record(
            student=Student(options.student_id, start.name),
            date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            recipe=start.recipe,
            machine=machine,
            data=images.facts,
            model=model,
            training=training,
            results=results,
            findings=start.findings,
            shown=shown,
            stages=screen.seconds,
        )
        with screen.stage("Report"):
            report.write_code(record, staging.folder)
            draw(record, options, options.answers, staging.folder, screen)
    return record


def draw(record, options, answers, folder, screen):
    """Draw the report into `folder`, and say what there is to say of it."""
    import report

    for line, failed in report.write_report(record, folder, answers, options.latex):
        warn(line) if failed else screen.say(line, "yellow")


def warn(line):
    """Say what went wrong beside the bundle, which stays."""
    print(f"run.py: {line}", file=sys.stderr)


def report_only(options, screen):
    """Draw the PDF of a finished run again -> Record."""
    with screen.stage("Report"), redrawn(options.folder) as folder:
        import report
        from lab.record import read_record
        from study import findings
        from verify.pages import keep_answers

        report.check_report(options.answers, options.latex, options.notebook)
        record = read_record(options.folder / "run" / "record.json", options.student_id)
        if options.notebook:
            report.check_finished(record, options.folder)
        record.student.name = record.student.name if options.name is None else options.name
        if options.diary or options.compare:
            named = findings.load_findings(options.diary, options.compare)
            record.findings.diary = named.diary if options.diary else record.findings.diary
            record.findings.comparison = named.comparison if options.compare else record.findings.comparison
        with tempfile.TemporaryDirectory() as old:
            pdf = folder / file_name(options.student_id, "pdf")
            kept = keep_answers(pdf, old)
            for path in sorted(kept.glob("*.md")) if kept and options.answers else ():
                question = path.name.partition(".")[0]
                if not (options.answers / (question + ".md")).is_file():
                    screen.say(f"{question}.md is ours again: it is not in {options.answers}", "yellow")
            draw(record, options, options.answers or kept, folder, screen)
    return record


def predict_pictures(options, screen):
    """Ask a finished model about new pictures -> the paths of the table and the page."""
    from lab.prediction import predict
    from report.predictions import write_predictions

    table, outcome = predict(options, screen)
    page = table.with_suffix(".html")
    write_predictions(outcome, page)
    return [table, page]


def finish(record, options, screen):
    """What is made from the finished bundle, and its check -> (paths, whether all is well)."""
    folder, well = options.folder, True
    names = bundle_names(options.student_id)
    paths = [folder / name for name in (names[:1] if options.report_only else names)]
    if not options.latex and (folder / "latex").exists():
        screen.say("latex/ holds an earlier report: --report-only --latex draws it anew", "yellow")
    if options.latex:
        paths += sorted((folder / "latex").glob(f"{options.student_id}_Lab8_Homework.[tp]*"), reverse=True)
    if options.notebook:
        import report

        with screen.stage("Notebook"), screen.count("running cells") as tick:
            path, message = report.write_notebook(record, folder, tick)
        if message:
            warn(message)
        paths, well = [*paths, path], message is None
    paths += zip_bundle(folder, options.student_id, options.zip)
    if options.checks_bundle:
        from verify.verification import verify_own

        with screen.stage("Verification"):
            well &= verify_own(folder, record, screen)
    if options.onnx:  # last: where it cannot be written, all else is done
        from lab.export import write_onnx

        with screen.stage("ONNX"):
            path, difference = write_onnx(folder, options.student_id, options.onnx)
        screen.say(f"its confidences differ from PyTorch's by at most {difference:.0e}")
        paths.append(path)
    return paths, well


def main(argv=None):
    """The exit code of `run`. Where torchrun has started several processes, of this one's part in it."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does

    def lead():
        return exit_code("run.py", lambda: run(argv))

    if processes() == 1:
        return lead()
    from lab import distributed

    return distributed.join(lead)


def run(argv):
    """Exit code 0: done; 1: a bundle is not what its report states, or its notebook does not run."""
    start = time.perf_counter()
    options = parse_options(argv)
    from lab.console import Screen
    from lab.machine import keep_caches_writable

    keep_caches_writable()
    screen = Screen(options.quiet, options.stages)
    if options.verify:
        from verify.verification import verify_all

        return verify_all(options.verify, options.data, screen, limits=options.limits)
    if options.check:
        from lab.stages import check_data

        check_data(options, screen)
        return 0
    if options.predict:
        print(*predict_pictures(options, screen), sep="\n")
        return 0
    record = (report_only if options.report_only else train_and_report)(options, screen)
    paths, well = finish(record, options, screen)
    screen.conclude(record, paths, time.perf_counter() - start)
    return 0 if well else 1


if __name__ == "__main__":
    leave(main())
