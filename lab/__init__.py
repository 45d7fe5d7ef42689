"""What surrounds a run: options, recipe, intake of strangers' files, machine, record, bundle, console."""

from lab.start import check_start

check_start()  # here, so that no command can forget it
