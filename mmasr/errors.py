"""Errors that a tool shows as one line, and bugs, which it shows as bugs."""

import contextlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

#: Folders with the code of mmasr: the package, and the tools of a checkout.
_SOURCES = tuple(f'{Path(__file__).parent.with_name(name)}{os.sep}' for name in ('mmasr', 'tools'))


class InputError(ValueError):
    """An input that cannot be used.

    The message says what is wrong, where, and what to do. It names parameters in backquotes, which a tool
    shows as its options.
    """

    def __str__(self) -> str:
        """Return the message without the traceback that a DataLoader's worker puts around it."""
        text = super().__str__()
        return (
            text.rstrip().rpartition('InputError: ')[2] if text.startswith('Caught InputError in') else text
        )


@contextlib.contextmanager
def as_input_error(problem: str) -> Iterator[None]:
    """Turn the exceptions that other packages raise into an :class:`InputError` of one line.

    An InputError and a bug of mmasr (:func:`is_bug`) pass through unchanged.

    Args:
        problem (str): What went wrong, at the start of the line.

    Raises:
        InputError: Inside, for any other exception, which it is chained to.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or is_bug(error):
            raise
        raise InputError(one_line(problem, error)) from error


@contextlib.contextmanager
def with_source(source: object) -> Iterator[None]:
    """Name the source of the input, such as a file, at the start of every InputError.

    Args:
        source (object): The source; its text is shown.

    Raises:
        InputError: Inside, with the source in its message.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f'{source}: {error}') from error


def is_bug(error: BaseException) -> bool:
    """Return whether an exception is a bug of mmasr: it was raised in mmasr, and not as an InputError.

    Files and memory can fail in any code. A function that passes on keyword arguments is not to blame for
    arguments that the callee does not take.

    Args:
        error (BaseException): The exception, with its traceback.
    """
    if isinstance(error, InputError | OSError | MemoryError):
        return False
    if re.search('out of memory|allocate memory', str(error)):  # torch's, on GPUs and CPUs
        return False
    if worker := re.findall(r'File "(.+?)", line', str(error)) if str(error).startswith('Caught ') else []:
        return worker[-1].startswith(_SOURCES)
    if error.__traceback__ is None:
        return False
    code = inspect.getinnerframes(error.__traceback__)[-1].frame.f_code
    is_about_arguments = isinstance(error, TypeError) and 'argument' in str(error)
    passes_on = is_about_arguments and code.co_flags & inspect.CO_VARKEYWORDS
    return code.co_filename.startswith(_SOURCES) and not passes_on


def exit_on_input_error(main: Callable[[], None], **options: str) -> None:
    """Run a tool's ``main``; on an error print one line and exit with status 1.

    A bug is shown with its traceback, and so is everything if ``MMASR_TRACEBACK=1`` is set.

    Args:
        main (callable): The tool.
        **options (str): Parameters whose options have another name: parameter -> option.
    """
    try:
        main()
    except Exception as error:
        if is_bug(error):
            traceback.print_exc()
            sys.exit('error: this is a bug in mmasr; please report it with the traceback above')
        if os.environ.get('MMASR_TRACEBACK'):
            traceback.print_exc()
        if isinstance(error, InputError):
            line = re.sub(r'`(\w+)`', lambda name: _option(name[1], options), str(error))
        else:
            line = one_line('the run failed', error)
        hint = ' (MMASR_TRACEBACK=1 shows the traceback)' if _is_foreign(error) else ''
        sys.exit(printable(f'error: {line}{hint}'))


def _is_foreign(error: BaseException | None) -> bool:
    """Return whether an exception of another package caused an error; a failing file needs no traceback."""
    while isinstance(error, InputError):
        error = error.__cause__
    return error is not None and not isinstance(error, OSError)


def _option(parameter: str, options: dict[str, str]) -> str:
    return f'--{options.get(parameter, parameter).replace("_", "-")}'


def printable(text: object) -> str:
    """Return text with its terminal control sequences escaped; names from an untrusted file may hold some."""
    return ''.join(c if c.isprintable() or c == '\n' else repr(c)[1:-1] for c in str(text))


def one_line(problem: str, error: Exception) -> str:
    """Say in one line what went wrong and why.

    Args:
        problem (str): What went wrong.
        error (Exception): Why. Backquotes in its message become quotes, since they name no parameter of ours.

    Returns:
        str: The line.
    """
    kind, why = type(error).__name__, str(error).replace('`', "'").rstrip()
    if why.startswith(
        f'Caught {kind} in'
    ):  # by a DataLoader's worker; its traceback ends with the error itself
        return f'{problem}: {why.splitlines()[-1]}'
    if isinstance(error, InputError):
        return f'{problem}: {why}'
    return f'{problem}: {kind}: {why}'.splitlines()[0]


def shortened(names: Sequence[str]) -> str:
    """Return the first five of some names as text, and how many more there are."""
    shown = ', '.join(name if name.isprintable() else repr(name) for name in names[:5])
    return f'{shown} and {len(names) - 5} more' if len(names) > 5 else shown
