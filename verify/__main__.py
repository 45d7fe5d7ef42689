"""The command of the verification: python -m verify handed_in --data dataset.zip"""

import argparse
import sys
from pathlib import Path

from lab.errors import exit_code
from lab.options import Once

DESCRIPTION = """\
Check that bundles are what their reports say: the figures that the submitted weights give in this project's
own model on a split made here, and every page of the PDF. No submitted code is run. Exit code 0 if all hold
and nothing else was handed in, 1 if not, 2 if there is nothing to check.

  python -m verify outputs/0812345                    a bundle
  python -m verify handed_in --data dataset.zip       a folder of bundles and zips of bundles, or one zip
  python -m verify handed_in --data dataset.zip --jobs 4 --report-csv grades.csv --diff edited
"""


def make_parser():
    """The argparse parser of python -m verify."""
    parser = argparse.ArgumentParser(
        prog="python -m verify",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.register("action", None, Once)
    parser.add_argument("bundles", type=Path, help="a bundle's folder, a folder of many, or a zip")
    parser.add_argument("--data", metavar="PATH", help="the images (default: those of each bundle's own run)")
    parser.add_argument("--limit", metavar="NAME=N", action="append", default=[], help="as for run.py")
    table = "the table that --data was read with: a report's own word for it is not followed"
    parser.add_argument("--labels", metavar="FILE", help=table)
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="bundles checked at a time")
    parser.add_argument("--diff", metavar="DIR", type=Path, help="write there what was edited in each code")
    parser.add_argument("--report-csv", metavar="FILE", type=Path, help="a table for the gradebook")
    parser.add_argument("--quiet", action="store_true", help="print nothing: the exit code tells")
    return parser


def main(argv=None):
    """The exit code: that of the description, or 130 after Ctrl-C."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error("--jobs N: at least 1")

    def work():
        from lab.console import Screen
        from lab.limits import limits_of
        from lab.machine import keep_caches_writable
        from verify.verification import verify_all

        keep_caches_writable()
        more = {"labels": args.labels, "jobs": args.jobs, "diff": args.diff, "table": args.report_csv}
        screen = Screen(args.quiet, stages=0)
        return verify_all(args.bundles, args.data, screen, limits=limits_of(args.limit), **more)

    return exit_code("verify", work)


if __name__ == "__main__":
    sys.exit(main())
