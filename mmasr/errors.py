"""The one kind of error that a tool shows as a line of text."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave can't be used; the message says what is wrong, where, and what to do."""


def exit_on_input_error(main: Callable[[], None]) -> None:
    """Run a tool's ``main``; print an :class:`InputError` as one line and exit with status 1."""
    try:
        main()
    except InputError as error:
        sys.exit(f'error: {error}')
