"""What a tool shows of an error."""

import pytest

from mmasr.errors import InputError, exit_on_input_error, one_line


def shown(message: str, **options: str) -> str:
    def main():
        raise InputError(message)

    with pytest.raises(SystemExit) as caught:
        exit_on_input_error(main, **options)
    return caught.value.code


def test_parameters_are_shown_as_options():
    assert (
        shown('x.pth is there; pass `force`, or `trust_imports`') == 'error: x.pth is there; pass --force, or --trust-imports'
    )


def test_an_option_may_have_another_name_than_its_parameter():
    assert shown('`images` 1: too few', images='calibrate') == 'error: --calibrate 1: too few'


def test_what_another_library_puts_between_backquotes_is_left_alone():
    message = one_line('it does not build; give `config`', TypeError('`cfg` must be a dict'))
    assert shown(message) == "error: it does not build; give --config: TypeError: 'cfg' must be a dict"


def test_control_sequences_are_spelled_out():
    assert shown('\x1b[2J.pth') == r'error: \x1b[2J.pth'
