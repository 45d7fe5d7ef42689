"""What is shown of things of which there may be many: files, notes, classes. What is left away is counted."""

from report.page import shorten

FACTS = 12  # rows of the table about files
LISTED = 32  # rows of a table of classes: with its heading less than a page
PICTURED = 24  # classes of which images are shown
IN_ROWS = 12  # up to so many classes have a row of example predictions each
NAME = 60  # letters of a file's name or of a sentence's part, at most


def frequent(pairs, most=3):
    """[(name, files)] as "200 x 200 (1,800 files), ...", the first of them."""
    shown = ", ".join(f"{name.replace(' x ', ' × ')} ({count:,})" for name, count in pairs[:most])
    return shown + (f", and {len(pairs) - most} more" if len(pairs) > most else "")


def file_facts(data):
    """Rows (what, how many, example) of the files that were not used and of the images kept together, and
    how many such rows are left away. The example is a name from elsewhere, cut."""
    rows = [(f"not used: {shorten(r.reason, NAME)}", f"{r.files:,}", r.example) for r in data.left_out]
    files = {}
    for entry in data.unreadable:
        files.setdefault(entry.reason, []).append(entry.file)
    rows += [(f"unreadable: {shorten(why, NAME)}", f"{len(f):,}", f[0]) for why, f in files.items()]
    for r in data.kept_together:
        words = f"{r.images:,} in {r.groups:,} group{'s' * (r.groups != 1)}"
        rows.append((f"kept on one side: {shorten(r.reason, NAME)}", words, r.example))
    if data.contradictions:
        count = f"{len(data.contradictions):,}"
        rows.append(("equal pictures of different classes", count, data.contradictions[0]))
    shown = rows if len(rows) <= FACTS else rows[: FACTS - 1]
    return [(what, count, shorten(name, NAME)) for what, count, name in shown], len(rows) - len(shown)


def notes(data):
    """Sentences about what was guessed, converted or chosen, and how many are left away."""
    alone = "The submitted code cannot make this split by itself: it reads run/dataset_split/."
    said = [alone] * data.from_split + data.notes
    chosen = [f"--labels {data.choices.labels}"] * bool(data.choices.labels)
    chosen += [f"--include {name}" for name in data.choices.include]
    chosen += [f"--exclude {name}" for name in data.choices.exclude]
    chosen += [f"--group {data.choices.group}"] * bool(data.choices.group)
    if chosen:
        said.append(f"Chosen by the user: {', '.join(chosen)}.")
    return [shorten(sentence, 4 * NAME) for sentence in said[:8]], max(0, len(said) - 8)


def hardest(per_class):
    """The classes to list with their scores: all in their order, or of many those of the lowest F1."""
    names = list(per_class)
    return names if len(names) <= LISTED else sorted(names, key=lambda name: per_class[name].f1)[:LISTED]


def count_words(counts):
    """The images of each class in words, training + test; of many classes only the fewest and the most."""
    both = {name: (n, counts["test"][name]) for name, n in counts["train"].items()}
    if len(both) <= LISTED:
        return "; ".join(f"{name}: {a} + {b}" for name, (a, b) in both.items()) + " images."
    sizes = [a + b for a, b in both.values()]
    return f"{len(sizes)} classes of {min(sizes)} to {max(sizes)} images each."


def pictured(classes):
    """The classes of which images are shown, evenly chosen where they are too many."""
    count = min(len(classes), PICTURED)
    return [classes[i * len(classes) // count] for i in range(count)]


def example_rows(examples, classes):
    """Rows of [(prediction, URL)], one for each class; of many classes two images each, four on a row, the
    last of a class its mistake where it has one."""
    of_class = {name: [pair for pair in examples if pair[0].true == name] for name in pictured(classes)}
    if len(classes) <= IN_ROWS:
        return list(of_class.values())
    shown = [pair for pairs in of_class.values() for pair in (pairs[:1] + pairs[-1:])[: len(pairs)]]
    return [shown[i : i + 4] for i in range(0, len(shown), 4)]
