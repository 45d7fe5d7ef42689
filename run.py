#!/usr/bin/env python3
"""From a zip of defect images to the homework's three files: report (PDF), code (.py), weights (.pth).

    python run.py --student-id 0812345 --data dataset.zip

This file parses the command line and calls the stages in order; the work is done in data.py,
train.py, record.py and report/.
"""

import argparse
import contextlib
import dataclasses
import datetime
import errno
import re
import signal
import sys
import time
from pathlib import Path

import findings
from bundle import bundle_names, check_output, check_student_id, staged, zip_bundle
from machine import check_memory, keep_caches_writable
from recipe import InputError, Recipe, load_recipe, named_recipes, parse_setting

LONG = 600  # seconds of training that a person is warned of

EXAMPLES = """\
examples:
  python run.py --student-id 0812345                        try it: drawn demonstration images
  python run.py --student-id 0812345 --data dataset.zip     your images: a zip or a folder
  python run.py --student-id 0812345 --name "Lin Mei" --set epochs=120 --set learning_rate=5e-4
  python run.py --student-id 0812345 --data dataset.zip --study --budget 1h
                                                            search for a recipe first, train the best
  python run.py --student-id 0812345 --answers my_answers --report-only
                                                            new words, same measurements
  python run.py --verify outputs/0812345                    does the bundle hold what its PDF states?
  python run.py --verify handed_in --data dataset.zip       a folder (or zip) of many bundles

hyperparameters for --set (defaults of the recipe `default`):
"""


def parse_args(argv=None):
    hyperparameters = "".join(
        f"  {f.name + ' = ' + str(f.default).lower():27} {f.metadata['doc']}\n"
        for f in dataclasses.fields(Recipe)
    )
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Train a hand-written Vision Transformer on a zip or folder of images and write "
        "<id>_Lab8_Homework.pdf, .py and .pth to outputs/<id>/.",
        epilog=EXAMPLES + hyperparameters,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--student-id", metavar="ID", help="names the three files")
    parser.add_argument("--name", metavar="NAME", help="your name, for the title block")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="zip or folder with a folder of images for each class; default: dataset.zip or dataset/ "
        "here, else drawn demonstration images ('demo' asks for these)",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        default="default",
        help=f"hyperparameters: {', '.join(named_recipes())}, or a .toml file (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="change one hyperparameter of the recipe (repeatable; list below)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="training seed, the same as --set seed=N")
    parser.add_argument(
        "--study",
        action="store_true",
        help="first search for a better recipe on a validation part of the training split, then train that",
    )
    parser.add_argument(
        "--budget",
        metavar="HOW MUCH",
        help="of --study: 90s, 10m, 2h, or a number of trials (default: 10m)",
    )
    parser.add_argument(
        "--diary",
        metavar="JSON",
        nargs="?",
        const=findings.FRESH,
        help="the ablation diary that question 7 shows: results of tune.py --diary, or without a file make "
        "them now, in hours on a CPU (default: the recorded one of NEU-CLS, as recorded)",
    )
    parser.add_argument(
        "--compare",
        metavar="JSON",
        nargs="?",
        const=findings.FRESH,
        help="the ViT beside a CNN in question 8: results of compare.py, or without a file make them now, in "
        "an hour on a CPU (default: as for --diary)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of the forward and backward pass (default: the fastest the device has)",
    )
    parser.add_argument(
        "--answers",
        metavar="DIR",
        type=Path,
        help="your answers q06.md ... q10d.md; they replace ours file by file",
    )
    parser.add_argument("--output-dir", metavar="DIR", type=Path, default=Path("outputs"))
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="draw the PDF again from outputs/<id>/run/record.json",
    )
    parser.add_argument(
        "--latex",
        action="store_true",
        help="also write the report as LaTeX to outputs/<id>/latex/, compiled if latexmk is installed",
    )
    parser.add_argument(
        "--notebook",
        action="store_true",
        help="also write the code as a notebook, <id>_Lab8_Homework.ipynb, run with its outputs",
    )
    parser.add_argument(
        "--limit",
        metavar="NAME=N",
        action="append",
        default=[],
        help="what a zip or folder may hold: images (default 200000), image_mb (200); total_gb (50): a zip",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with this id's interrupted run, with its own data and recipe",
    )
    parser.add_argument(
        "--zip", action="store_true", help="also put the three files into <id>_Lab8_Homework.zip, to upload"
    )
    parser.add_argument(
        "--verify",
        metavar="PATH",
        type=Path,
        help="check finished bundles, do nothing else: a bundle's folder, a folder of many, or a zip; their "
        "code runs apart, without network, and the images are --data or else the bundle's own",
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="do not check the new bundle at the end (saves seconds)"
    )
    parser.add_argument("--force", action="store_true", help="replace a finished bundle of this id")
    parser.add_argument("--quiet", action="store_true", help="print nothing but the paths and errors")
    args = parser.parse_args(argv)
    if args.verify is None and args.student_id is None:
        parser.error("--student-id ID is needed")
    return args


def draw_report(record, pdf, run, answers, screen):
    """Write the PDF, and the same page for the screen to run/report.html."""
    import report
    from record import write_whole

    content, page = report.render_report(record, run, answers)
    write_whole(pdf, content)
    write_whole(run / "report.html", page)
    names = [record["student"]["name"] or "", *record["data"]["classes"]]
    if missing := report.missing_letters("".join(names)):
        screen.say(f"the report's fonts lack {missing}: look at it, a box may stand in its place", "yellow")


def draw_latex(args, record, run, folder):
    """The report as LaTeX, if asked for. -> its paths"""
    if not args.latex:
        return []
    import report

    paths, message = report.write_latex(record, run, folder, args.answers)
    if message:
        print(f"run.py: {message}", file=sys.stderr)
    return paths


def write_notebook(args, record, folder, screen):
    """The notebook in the finished bundle, if asked for. -> ([its path] or [], whether it ran)"""
    if not args.notebook:
        return [], True
    import report

    with screen.stage("Notebook"), screen.count("running cells") as tick:
        path, message = report.write_notebook(record, folder, tick)
    if message:
        print(f"run.py: {message}", file=sys.stderr)
    return [path], message is None


def report_only(args, student_id, screen):
    """Draw the PDF of a finished run again."""
    import json

    import report
    from record import SCHEMA, sha256, write_record

    folder = args.output_dir / student_id
    path = folder / "run" / "record.json"
    with screen.stage("Report"):
        report.check_renderer()
        if args.latex:
            report.check_latex(args.answers)
        if args.notebook:
            report.check_notebook()
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"there is no {path}: run once without --report-only") from None
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}): run again with --force") from None
        known = {f.name for f in dataclasses.fields(Recipe)}
        if record.get("schema") != SCHEMA or set(record["recipe"]["values"]) != known:
            raise InputError(f"{path} was written by another version: run again with --force")
        if args.notebook:
            report.check_finished(record, folder)
        if args.name:
            record["student"]["name"] = args.name
        if args.diary or args.compare:
            named = findings.load_findings(args.diary, args.compare)
            record["findings"] |= {kind: found for kind, found in named.items() if found and found["fresh"]}
        pdf = bundle_names(student_id)[0]
        draw_report(record, folder / pdf, folder / "run", args.answers, screen)
        record["files"][pdf] = sha256(folder / pdf)
        write_record(path, record)
        latex = draw_latex(args, record, folder / "run", folder / "latex")
    return [folder / pdf, *latex], record


def limits_of(texts):
    """data.Limits with what --limit sets. InputError for other names and values."""
    from data import Limits

    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in Limits._fields or not re.fullmatch(r"\d{1,12}(\.\d+)?", value):
            raise InputError(f"--limit {text}: write it as {', '.join(f'{n}=N' for n in Limits._fields)}")
        values[name] = float(value)
    return Limits(**values)


def _from(path, folder):
    """`path` as seen from `folder` where it lies in it, so that the folder may be moved; else whole."""
    path, folder = Path(path).resolve(), Path(folder).resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def has_studies(args):
    """Whether a study is to be made within the run, which adds a stage."""
    return args.study or findings.FRESH in (args.diary, args.compare)


def train_and_report(args, student_id, recipe, settings, screen):
    """The whole job: images to bundle. Nothing is in the output folder before all of it is done."""
    from console import clock

    folder = args.output_dir / student_id
    check_output(folder, student_id, args.force)

    with screen.stage("Check"):
        import report

        report.check_renderer()
        report.check_answers(args.answers)
        if args.latex:
            report.check_latex(args.answers)
        if args.notebook:
            report.check_notebook()
        import torch

        import checkpoint
        import data
        import inspection
        import record as rec
        import train

        limits = limits_of(args.limit)
        if args.name:
            data.check_name(args.name)
        device = train.choose_device(args.device)
        precision = train.choose_precision(args.precision, device)
        check_memory(recipe, device, precision)
        machine = rec.describe_machine(device)
        name = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
        screen.say(f"{device.type} ({name}), {precision}; recipe {Path(args.recipe).stem}")

    recipe_name = Path(args.recipe).stem
    if not args.resume:
        studies = screen.stage("Studies") if has_studies(args) else contextlib.nullcontext()
        with studies:
            better, found = findings.make_studies(
                folder.with_name(f"{folder.name}-studies"),
                args.data or data.default_source() or "demo",
                recipe,
                settings,
                budget=(args.budget or "10m") if args.study else None,
                diary=args.diary,
                comparison=args.compare,
                say=screen.say,
            )
            if better != recipe:
                recipe, recipe_name = better, "search"

    with staged(folder, student_id, args.resume) as staging:
        run = staging.run
        if args.resume:
            saved = checkpoint.Checkpoint.load(staging.checkpoint)
            recipe = Recipe(**saved.call["recipe"])
            precision = train.choose_precision(saved.call["precision"], device)
            screen.say(f"goes on after epoch {len(saved.history)} of {recipe.epochs}")

        with screen.stage("Data"):
            if args.resume:
                place, *about = saved.call["source"]
                source = data.Source(run / place, *about)
            else:
                source = data.open_source(args.data, run, limits)
            with screen.count("reading images") as tick:
                images = data.load_data(source.folder, run / "dataset_split", recipe, tick)
            facts = {
                "source": source.kind,
                "name": source.name,
                "demonstration": source.kind == "demonstration",
            }
            facts |= data.describe_data(images, recipe)
            if args.resume and facts["fingerprint"] != saved.call["fingerprint"]:
                raise InputError(f"the images in {source.folder} are others now: run without --resume")
            if facts["demonstration"]:
                screen.say("demonstration images, drawn by synthetic.py: name your own with --data")
            copies = facts["same_pixels"]["files"]
            screen.say(
                f"{len(images.classes)} classes, {len(images.train.files)} training and "
                f"{len(images.test.files)} test images"
                + (f", {len(copies)} of them copies (kept on one side)" if copies else "")
            )
            for image in facts["unreadable"]:
                screen.say(f"left out, unreadable: {image['file']} ({image['reason']})", "yellow")

        check_memory(recipe, device, precision, len(images.train.files), len(images.classes))
        with screen.stage("Model"):
            model = train.make_model(recipe, len(images.classes))
            described = rec.describe_model(model)
            screen.say(f"ViT with {described['parameters']:,} parameters")
            model.to(device)

        if not args.resume:
            call = {
                "source": [_from(source.folder, run), source.kind, source.name],
                "fingerprint": facts["fingerprint"],
                "recipe_name": recipe_name,
                "recipe": recipe.values(),
                "findings": found,
                "precision": precision,
                "name": args.name,
            }
            saved = checkpoint.Checkpoint(staging.checkpoint, call)
        with screen.stage("Training"), open(run / "training.log", "w", encoding="utf-8") as log:
            print(saved.log, end="", file=log)

            def note(line):
                print(line, file=log, flush=True)
                saved.log += f"{line}\n"

            history = saved.history
            loaders = data.make_loaders(images, recipe, device)
            left = recipe.epochs - len(history)
            if left:
                expected = train.estimate_seconds(model, *loaders, recipe, precision, screen.say)
                expected *= left / recipe.epochs
                screen.say(f"{left} epochs, about {clock(expected)} here")
                if expected > LONG:
                    screen.say(
                        "long: Ctrl-C stops, and --resume goes on; --recipe default, --set epochs=N or a GPU "
                        "take less",
                        "yellow",
                    )
            start = time.perf_counter()
            with screen.training(recipe.epochs, len(loaders[0]), len(history)) as (tick, show):
                rows = train.fit(
                    model,
                    *loaders,
                    recipe,
                    precision=precision,
                    log=note,
                    tick=tick,
                    begin=saved.begin,
                )
                for row in rows:
                    show(row)
                    saved.save(row, time.perf_counter() - start)
            seconds = saved.seconds + time.perf_counter() - start
            print(f"Execution time: {seconds:5.2f} seconds", file=log)
            screen.say(f"{recipe.epochs} epochs in {seconds:.0f} s")
        screen.seconds["training"] += saved.seconds

        with screen.stage("Evaluation"):
            pdf, code, weights = bundle_names(student_id)
            torch.save({k: v.cpu() for k, v in model.state_dict().items()}, staging.folder / weights)
            logits, labels = train.predict(model, loaders[1], **train.test_views(recipe))
            results = rec.score(logits.cpu().numpy(), labels.cpu().numpy(), images.classes, images.test.files)
            screen.say(f"test loss {results['loss']:.4f}, {results['correct']} of {results['total']} right")
            shown = inspection.look_into(model, images, results["predictions"], recipe, run)

        record = {
            "schema": rec.SCHEMA,
            "student": {"id": student_id, "name": args.name or saved.call["name"]},
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "recipe": {"name": saved.call["recipe_name"], "values": recipe.values()},
            "machine": machine | {"precision": precision},
            "data": facts,
            "model": described,
            "training": {
                "seconds": seconds,
                "images_per_second": len(images.train.files)
                * recipe.epochs
                / sum(row["train_seconds"] for row in history),
                "history": history,
            },
            "results": results,
            "findings": saved.call["findings"],
            **shown,
            "stages": screen.seconds,
            "files": {},
        }
        with screen.stage("Report"):
            rec.write_whole(staging.folder / code, report.assemble_submission(record))
            record["files"] = {name: rec.sha256(staging.folder / name) for name in (code, weights)}
            rec.write_tables(run, record)
            rec.write_record(run / "record.json", record)
            staging.keep = True  # a fault in the drawing must not cost the trained weights
            draw_report(record, staging.folder / pdf, run, args.answers, screen)
            record["files"][pdf] = rec.sha256(staging.folder / pdf)
            rec.write_record(run / "record.json", record)
            latex = draw_latex(args, record, run, staging.folder / "latex")
    latex = [folder / path.relative_to(staging.folder) for path in latex]
    return [*(folder / name for name in (pdf, code, weights)), *latex], record


def main(argv=None):
    """Exit code 0: done; 1: a bundle is not what its report states, or its notebook does not run; 2: input
    can't be used; 130: Ctrl-C."""
    args = parse_args(argv)
    start = time.perf_counter()
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        from console import Screen, clock

        keep_caches_writable()
        if args.verify:
            import verification

            screen = Screen(args.quiet, stages=0)
            return verification.verify_all(args.verify, args.data, screen)
        student_id = check_student_id(args.student_id)
        settings = [parse_setting(text) for text in args.set]
        if args.seed is not None:
            settings.append(("seed", args.seed))
        recipe = load_recipe(args.recipe, settings)
        own = settings or args.data or args.recipe != "default" or args.diary or args.compare or args.study
        if args.resume and own:
            raise InputError(
                "--resume goes on with the run's own data and recipe: leave --data, --recipe, "
                "--set, --seed and studies out"
            )
        if args.budget and not args.study:
            raise InputError("--budget goes with --study")
        if args.report_only and has_studies(args):
            raise InputError(
                "--report-only makes no study: name the JSON of one, --diary JSON or --compare JSON"
            )
        check_bundle = not (args.no_verify or args.report_only)  # new words change no measurement
        stages = 1 if args.report_only else 6 + has_studies(args)
        screen = Screen(args.quiet, stages=stages + args.notebook + check_bundle)
        if args.report_only:
            paths, record = report_only(args, student_id, screen)
        else:
            paths, record = train_and_report(args, student_id, recipe, settings, screen)
        folder = args.output_dir / student_id
        notebook, ran = write_notebook(args, record, folder, screen)
        paths += [*notebook, *zip_bundle(folder, student_id, args.zip)]
        holds = True
        if check_bundle:
            import verification

            with screen.stage("Verification"):
                holds = verification.verify_own(folder, student_id, screen)
    except InputError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run.py: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        hints = {
            **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"make room in {args.output_dir}"),
            **dict.fromkeys(
                (errno.EACCES, errno.EPERM, errno.EROFS), "give access to it, or name another --output-dir"
            ),
        }
        if error.errno not in hints:
            raise
        what = f" {error.filename!r}" if error.filename else ""
        print(f"run.py: {error.strerror}{what}: {hints[error.errno]}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        import train

        if not train.is_out_of_memory(error):
            raise
        hint = "make dim, depth or image_size smaller, or train on a machine with more"
        print(f"run.py: memory is too small, even for one image at a time: {hint}", file=sys.stderr)
        return 2

    results = record["results"]
    verdict = "passed" if results["passed"] else "not reached"
    about = " on demonstration images" if record["data"]["demonstration"] else ""
    screen.console.print()
    for path in paths:
        print(path)
    screen.console.print(
        f"\n[bold]Test accuracy {results['accuracy']:.2%}[/]{about} ({results['correct']} of "
        f"{results['total']}; {results['baseline']:.0%} baseline {verdict}) "
        f"in {clock(time.perf_counter() - start)}",
        soft_wrap=True,
    )
    return 0 if holds and ran else 1


if __name__ == "__main__":
    sys.exit(main())
