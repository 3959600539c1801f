"""The one kind of error that a tool shows as a line of text."""

import re
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave can't be used; the message says what is wrong, where, and what to do.

    It names parameters of functions between backquotes, which a tool shows as its options.
    """

    def __str__(self) -> str:
        text = super().__str__()
        # A worker of a DataLoader hands its traceback on, of which the last line is the error's.
        return text.rstrip().rpartition('InputError: ')[2] if text.startswith('Caught InputError in') else text


def exit_on_input_error(main: Callable[[], None], **options: str) -> None:
    """Run a tool's ``main``; print an :class:`InputError` and exit with status 1.

    Args:
        main (callable): The tool.
        **options (str): The tool's options that are named otherwise than the parameters they set: parameter -> option.
    """
    try:
        main()
    except InputError as error:
        message = re.sub(r'`(\w+)`', lambda name: f'--{options.get(name[1], name[1]).replace("_", "-")}', str(error))
        sys.exit(printable(f'error: {message}'))


def printable(text: object) -> str:
    """Text without control sequences of a terminal, which names from a stranger's file may hold."""
    return ''.join(c if c.isprintable() or c == '\n' else repr(c)[1:-1] for c in str(text))


def one_line(problem: str, error: Exception) -> str:
    """Say in one line what went wrong and why. What stands between backquotes in the error is no parameter of ours."""
    kind, why = type(error).__name__, str(error).replace('`', "'").rstrip()
    if why.startswith(f'Caught {kind} in'):  # by a worker of a DataLoader, which hands its traceback on
        return f'{problem}: {why.splitlines()[-1]}'
    return f'{problem}: {kind}: {why}'.splitlines()[0]


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ', '.join(name if name.isprintable() else repr(name) for name in names[:5]) + (
        f' and {len(names) - 5} more' if len(names) > 5 else ''
    )
