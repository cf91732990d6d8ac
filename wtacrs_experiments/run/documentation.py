"""Functions of Python's own library: from a signature to the documentation string."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from functools import cache

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


@cache
def documentation() -> list[tuple[str, str]]:
    """(signature, documentation string) of the public functions in modules of Python's library.

    As an interpreter has them that has imported nothing else: packages replace some of them.
    """
    command = [sys.executable, "-I", "-S", __file__]
    found = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return [(told, text) for told, text in json.loads(found.stdout)]


def _documented() -> list[tuple[str, str]]:
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


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(json.dumps(_documented()))
