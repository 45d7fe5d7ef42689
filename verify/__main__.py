"""The command of the verification: python -m verify handed_in --data dataset.zip"""

import argparse
import sys
from pathlib import Path

from lab.errors import InputError

DESCRIPTION = """\
Check that bundles are what their reports say: files, hashes, and the figures that the submitted weights
give on a split made here. Exit code 0 if all hold, 1 if one does not, 2 if there is nothing to check.

  python -m verify outputs/0812345                    a bundle
  python -m verify handed_in --data dataset.zip       a folder of bundles and zips of bundles, or one zip
"""


def main(argv=None):
    """The exit code: that of the description, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m verify",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("bundles", type=Path, help="a bundle's folder, a folder of many, or a zip")
    parser.add_argument("--data", metavar="PATH", help="the images (default: those of each bundle's own run)")
    parser.add_argument("--quiet", action="store_true", help="print nothing: the exit code tells")
    args = parser.parse_args(argv)
    try:
        from lab.console import Screen
        from lab.machine import keep_caches_writable
        from verify.verification import verify_all

        keep_caches_writable()
        return verify_all(args.bundles, args.data, Screen(args.quiet, stages=0))
    except KeyboardInterrupt:
        print("verify: stopped", file=sys.stderr)
        return 130
    except InputError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
