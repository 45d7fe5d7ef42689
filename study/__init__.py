"""Studies of recipes: search, trials, diary, comparison with CNNs. `python -m study --help`."""
