"""One command for all of the framework: ``wtacrs run``, ``wtacrs plan``, ``wtacrs table``, ...

Each hands over to a module, which says more with --help, and is imported only then: ``ls``,
``status`` and ``--help`` answer without torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from wtacrs_experiments.config import CONF
from wtacrs_experiments.config.places import PACKAGE
from wtacrs_experiments.errors import UserError, one_line

GROUPS = {  # what ls lists: a word for it, and its folder in conf/
    **{"models": "model", "tasks": "task", "tunings": "tuning", "estimators": "estimator"},
    **{"presets": "memory", "experiments": "experiment"},
}


def run(arguments: list[str]) -> int:
    """Train, or sweep with -m: what run.py takes."""
    from wtacrs_experiments.main import main

    sys.argv = ["wtacrs run", *arguments]
    return main()


@one_line()
def report(arguments: list[str]) -> int:
    """One page of a folder of records; of a single record, its short table."""
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        return record_table(Path(arguments[0]))
    return elsewhere("reports.page.__main__")(arguments)


def record_table(path: Path) -> int:
    """Print what a record holds."""
    from wtacrs_experiments.records.record import read_record
    from wtacrs_experiments.run.summary import show

    record = read_record(path)
    try:
        if record.status != "completed":
            told = record.error or {}
            print(f"{record.status}: {told.get('type')}: {told.get('message')}")
        show(record, path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} does not hold what a run measures ({why})") from error
    return 0


def ls(arguments: list[str]) -> int:
    """What there is to choose from: models, tasks, tunings, estimators, presets, experiments."""
    parser = argparse.ArgumentParser(prog="wtacrs ls", description=ls.__doc__)
    parser.add_argument("what", nargs="*", choices=[*GROUPS, []], help="default: all")
    for word in parser.parse_args(arguments).what or GROUPS:
        group = GROUPS[word]
        print(f"{word} ({group}=...)")
        files = sorted((CONF / group).glob("*.yaml"))
        for file in files:
            print(f"  {file.stem:<20} {first_comment(file)}".rstrip())
    return 0


def completion(arguments: list[str]) -> int:
    """What bash completes wtacrs by: eval "$(wtacrs completion)". For zsh see the first lines."""
    argparse.ArgumentParser(prog="wtacrs completion", description=completion.__doc__).parse_args(
        arguments
    )
    script = (PACKAGE / "completion.bash").read_text(encoding="utf-8")
    print(script.replace("@COMMANDS@", " ".join(COMMANDS)), end="")
    return 0


def first_comment(file: Path) -> str:
    """The first line of a YAML file that is a comment, without its mark."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = (line for line in lines if line.startswith("#") and "@package" not in line)
    return next(comments, "").lstrip("# ")


def elsewhere(module: str) -> Callable[[list[str]], int]:
    """The ``main`` of a module of this package, which is imported when it is called."""
    return lambda arguments: import_module(f"wtacrs_experiments.{module}").main(arguments)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "run": (run, "train, or sweep with -m: the overrides of run.py"),
    "plan": (elsewhere("plan.__main__"), "what a step takes, without data or GPU"),
    "predict": (elsewhere("run.predict"), "the answers of a trained model to a file"),
    "status": (elsewhere("plan.status"), "how far the sweep in a folder is"),
    "report": (report, "a folder of runs -> one page; one record -> its short table"),
    "table": (elsewhere("reports.tables"), "records of runs -> a table"),
    "figure": (elsewhere("reports.figures"), "records -> a figure"),
    "audit": (elsewhere("reports.audit"), "check published records, tables, figures"),
    "completion": (completion, 'shell completion: eval "$(wtacrs completion)"'),
    "ls": (ls, "models, tasks, tunings, estimators, presets, experiments"),
}


def main(arguments: list[str] | None = None) -> int:
    told = "\n".join(f"  {name:<8} {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="wtacrs",
        description=f"Fine-tuning with sampled activations.\n\n{told}\n\nwtacrs COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="those of the command")
    options = parser.parse_args(arguments)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # plugins lie there, as for python run.py
    return COMMANDS[options.command][0](options.arguments)


if __name__ == "__main__":
    sys.exit(main())
