"""What pages are made with: the templates' environment, and URLs that hold what they point to."""

import base64

import jinja2
from rich.cells import cell_len

from report.source import ROOT

TEMPLATES = ROOT / "templates"
STRICT = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}


def templates(**options):
    """The environment that fills the files in templates/; a name that is not there is an error."""
    return jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), **STRICT, **options)


def shorten(name, width):
    """A name of at most `width` letters, Chinese ones counting twice; a longer one loses its middle: names
    often differ at their end."""
    head = tail = ""
    if cell_len(name) <= width:
        return name
    while cell_len(head + tail) < width - 2:
        head, tail = name[: len(head) + 1], name[len(name) - len(tail) - (len(head) > len(tail)) :]
    return f"{head}…{tail}"


def data_url(content, kind):
    """Bytes as a URL that holds them, so that a page needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
