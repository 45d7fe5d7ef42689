"""Whether a bundle is what its report says. `python -m verify --help`."""
