"""Functions of Python's own library: from a signature to the documentation string."""

from __future__ import annotations

import importlib
import inspect
import re

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a default; each process has another
DOCUMENTED = [
    "argparse",
    "ast",
    "collections",
    "contextlib",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "email",
    "fractions",
    "functools",
    "heapq",
    "html",
    "inspect",
    "json",
    "logging",
    "os.path",
    "pathlib",
    "random",
    "re",
    "shutil",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "tokenize",
    "typing",
    "unittest",
]


def documentation() -> list[tuple[str, str]]:
    """(signature, documentation string) of the public functions in modules of Python's library."""
    rows = {}
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        for owner in (module, *(cls for _, cls in inspect.getmembers(module, inspect.isclass))):
            for key, function in inspect.getmembers(owner, inspect.isfunction):
                text = inspect.getdoc(function)
                if text and not key.startswith("_") and function.__module__ == module.__name__:
                    signature = ADDRESS.sub("", str(inspect.signature(function)))
                    full = f"{name}.{function.__qualname__}{signature}"
                    rows[full] = f"{text}\n"
    return [(f"{signature}\n", text) for signature, text in sorted(rows.items())]
