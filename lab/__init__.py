"""What surrounds a run: options, recipe, intake of strangers' files, machine, record, bundle, console."""
