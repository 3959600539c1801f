"""The one kind of error that a tool shows as a line of text."""

import re
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave can't be used; the message says what is wrong, where, and what to do.

    It names parameters of functions between backquotes, which a tool shows as its options.
    """


def exit_on_input_error(main: Callable[[], None], **options: str) -> None:
    """Run a tool's ``main``; print an :class:`InputError` and exit with status 1.

    Args:
        main (callable): The tool.
        **options (str): The tool's options that are named otherwise than the parameters they set: parameter -> option.
    """
    try:
        main()
    except InputError as error:
        # A worker of a DataLoader hands its traceback on, of which the last line is the error's.
        text = (
            str(error).rstrip().rpartition('InputError: ')[2] if str(error).startswith('Caught InputError in') else str(error)
        )
        message = re.sub(r'`(\w+)`', lambda name: f'--{options.get(name[1], name[1]).replace("_", "-")}', text)
        sys.exit(printable(f'error: {message}'))


def printable(text: object) -> str:
    """Text without control sequences of a terminal, which names from a stranger's file may hold."""
    return ''.join(c if c.isprintable() or c == '\n' else repr(c)[1:-1] for c in str(text))


def one_line(problem: str, error: Exception) -> str:
    """Say in one line what went wrong and why. What stands between backquotes in the error is no parameter of ours."""
    why = str(error).replace('`', "'")
    return f'{problem}: {type(error).__name__}: {why}'.splitlines()[0]


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ', '.join(name if name.isprintable() else repr(name) for name in names[:5]) + (
        f' and {len(names) - 5} more' if len(names) > 5 else ''
    )
