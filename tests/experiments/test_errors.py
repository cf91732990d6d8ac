"""A command ends in one line, without a traceback, by whatever it was ended."""

import pytest

from wtacrs_experiments.errors import UserError, first_line, one_line


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("no such task"), 2, "error: no such task\n"),
        (OSError(28, "No space left"), 2, "error: [Errno 28] No space left\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on\n"),
        (None, 0, ""),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_ends_a_command_is_told(error, status, told, capsys):
    @one_line(failed=2, interrupted="stopped; the same command goes on")
    def main(arguments=None):
        if error is not None:
            raise error
        return 0

    assert main([]) == status
    assert capsys.readouterr().err == told


def test_a_fault_of_ours_keeps_its_traceback():
    @one_line()
    def main():
        raise KeyError("x")

    with pytest.raises(KeyError):
        main()


def test_an_error_without_words_is_told_by_its_class():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(MemoryError()) == "MemoryError"
