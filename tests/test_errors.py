"""Tests of errors: which ones are bugs, which ones are about input, and how a tool shows them."""

import sys
from pathlib import Path

import pytest
import torch
from forked import run_python
from mmengine.registry import Registry
from torch._utils import ExceptionWrapper

import mmasr
from mmasr.errors import (
    InputError,
    as_input_error,
    exit_on_input_error,
    is_bug,
    one_line,
    printable,
    shortened,
    with_source,
)

INSIDE = Path(mmasr.__file__).with_name('imagined.py')
OUTSIDE = Path(torch.__file__).with_name('imagined.py')


def define(code: str, path: Path) -> dict:
    """Run code as if it was in a file, and return its names."""
    names = {'__name__': path.stem, 'InputError': InputError, 'torch': torch}
    exec(compile(code, str(path), 'exec'), names)
    return names


def fail(path: Path, statement: str = '1 / 0') -> Exception:
    """Return the exception of a statement in a function of a file."""
    try:
        define(f'def function():\n    {statement}', path)['function']()
    except Exception as error:
        return error
    raise AssertionError(f'{statement} did not fail')


def from_worker(error: Exception) -> Exception:
    """Return an exception as torch raises it again after it was raised in the worker of a DataLoader."""
    try:
        raise error
    except Exception:
        wrapped = ExceptionWrapper(sys.exc_info(), 'in DataLoader worker process 0')
    try:
        wrapped.reraise()
    except Exception as raised:
        return raised


class TestInputError:
    def test_it_is_a_value_error(self):
        assert issubclass(InputError, ValueError)

    def test_its_text_is_the_message(self):
        assert str(InputError('a.pth: not a checkpoint')) == 'a.pth: not a checkpoint'

    def test_its_text_has_no_traceback_of_a_dataloader_worker(self):
        error = from_worker(fail(OUTSIDE, "raise InputError('a.jpg: damaged')"))
        assert isinstance(error, InputError)
        assert 'Traceback' in error.args[0]
        assert str(error) == 'a.jpg: damaged'


class TestAsInputError:
    def test_a_foreign_exception_becomes_one_line_and_is_chained(self):
        foreign = KeyError('weight\nand much more')
        with pytest.raises(InputError) as caught, as_input_error('a.pth does not load'):
            raise foreign
        assert str(caught.value) == r"a.pth does not load: KeyError: 'weight\nand much more'"
        assert caught.value.__cause__ is foreign

    def test_only_the_first_line_is_shown(self):
        with pytest.raises(InputError) as caught, as_input_error('it does not build'):
            raise RuntimeError('wrong shape\nin layer 1\nin layer 2')
        assert str(caught.value) == 'it does not build: RuntimeError: wrong shape'

    def test_an_input_error_passes_unchanged(self):
        error = InputError('pass `config`')
        with pytest.raises(InputError) as caught, as_input_error('it does not build'):
            raise error
        assert caught.value is error
        assert str(error) == 'pass `config`'
        assert error.__cause__ is None

    def test_a_bug_passes_unchanged(self):
        bug = fail(INSIDE)
        with pytest.raises(ZeroDivisionError) as caught, as_input_error('it does not build'):
            raise bug.with_traceback(bug.__traceback__.tb_next)
        assert caught.value is bug

    def test_nothing_happens_without_an_exception(self):
        with as_input_error('it does not build'):
            pass

    @pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit])
    def test_an_interrupt_passes(self, error):
        with pytest.raises(error), as_input_error('it does not build'):
            raise error


class TestWithSource:
    def test_the_source_of_an_input_error_is_named_and_the_error_chained(self):
        error = InputError('not a checkpoint')
        with pytest.raises(InputError, match=r'^a\.pth: not a checkpoint$') as caught, with_source('a.pth'):
            raise error
        assert caught.value.__cause__ is error

    def test_other_exceptions_pass_unchanged(self):
        error = ValueError('shape')
        with pytest.raises(ValueError, match=r'^shape$') as caught, with_source(Path('a.pth')):
            raise error
        assert caught.value is error


PASSES_ON = """
class Layer:
    def __init__(self, channels):
        pass

def build(**options):
    return Layer(3, **options)

def build_with_options(options):
    return Layer(3, **options)
"""


class TestIsBug:
    @pytest.mark.parametrize(
        'statement', ['1 / 0', '{}[1]', 'assert False', "raise ValueError('shape')", 'None.weight']
    )
    def test_an_exception_that_mmasr_raises_is_a_bug(self, statement):
        assert is_bug(fail(INSIDE, statement))

    @pytest.mark.parametrize('path', [OUTSIDE, Path('config.py'), INSIDE.parent.with_name('mmasr_config.py')])
    def test_an_exception_that_other_code_raises_is_not_a_bug(self, path):
        assert not is_bug(fail(path))

    def test_an_exception_that_mmasr_gets_from_another_package_is_not_a_bug(self):
        assert not is_bug(fail(INSIDE, 'torch.nn.functional.relu(3)'))
        assert not is_bug(fail(INSIDE, 'torch.load("missing.pth")'))

    def test_an_input_error_is_not_a_bug(self):
        assert not is_bug(fail(INSIDE, "raise InputError('pass `config`')"))

    def test_an_exception_that_was_not_raised_is_not_a_bug(self):
        assert not is_bug(ValueError('shape'))

    @pytest.mark.parametrize(('path', 'expected'), [(INSIDE, True), (OUTSIDE, False)])
    def test_a_registry_of_mmengine_does_not_hide_a_bug(self, path, expected):
        registry = Registry('layers')
        registry.register_module(
            'Layer', module=define('class Layer:\n    def __init__(self):\n        1 / 0', path)['Layer']
        )
        with pytest.raises(ZeroDivisionError) as caught:
            registry.build({'type': 'Layer'})
        assert is_bug(caught.value) == expected

    def test_an_input_error_in_a_registry_of_mmengine_stays_one(self):
        with pytest.raises(InputError, match='spatial map') as caught:
            mmasr.registry.MODELS.build(
                {'type': 'mmasr.ASR', 'attention': {'type': 'CBAM'}, 'in_channels': 8}
            )
        assert not is_bug(caught.value)

    @pytest.mark.parametrize(
        'statement', ["open('missing.txt')", 'raise MemoryError', "raise RuntimeError('CUDA out of memory')"]
    )
    def test_files_and_memory_can_fail_in_any_code(self, statement):
        assert not is_bug(fail(INSIDE, statement))

    def test_an_unknown_option_that_a_function_passes_on_is_not_a_bug(self):
        with pytest.raises(TypeError, match='unexpected keyword') as caught:
            define(PASSES_ON, INSIDE)['build'](ratio=4)
        assert not is_bug(caught.value)

    def test_an_unknown_option_in_a_call_by_mmasr_itself_is_a_bug(self):
        with pytest.raises(TypeError, match='unexpected keyword') as caught:
            define(PASSES_ON, INSIDE)['build_with_options']({'ratio': 4})
        assert is_bug(caught.value)

    def test_another_type_error_in_a_function_that_passes_on_options_is_a_bug(self):
        with pytest.raises(TypeError, match='unsupported operand') as caught:
            define('def build(**options):\n    None + 1', INSIDE)['build'](ratio=4)
        assert is_bug(caught.value)

    @pytest.mark.parametrize(('path', 'expected'), [(INSIDE, True), (OUTSIDE, False)])
    def test_a_bug_in_a_dataloader_worker_is_told_by_the_text_of_its_traceback(self, path, expected):
        error = from_worker(fail(path))
        assert 'Caught ZeroDivisionError in DataLoader worker process 0' in str(error)
        assert is_bug(error) == expected


def shown(message: str, **options: str) -> str:
    """Return the line that a tool shows for an InputError."""

    def main():
        raise InputError(message)

    with pytest.raises(SystemExit) as caught:
        exit_on_input_error(main, **options)
    return caught.value.code


class TestExitOnInputError:
    def test_parameters_are_shown_as_options(self):
        message = 'x.pth exists; pass `force`, or `trust_imports`'
        assert shown(message) == 'error: x.pth exists; pass --force, or --trust-imports'

    def test_an_option_may_have_another_name_than_its_parameter(self):
        assert shown('`images` 1: too few', images='calibrate') == 'error: --calibrate 1: too few'

    def test_backquotes_of_other_libraries_are_not_options(self):
        message = one_line('it does not build; pass `config`', TypeError('`cfg` must be a dict'))
        assert shown(message) == "error: it does not build; pass --config: TypeError: 'cfg' must be a dict"

    def test_control_sequences_are_escaped(self):
        assert shown('\x1b[2J.pth') == r'error: \x1b[2J.pth'

    def test_a_tool_without_an_error_does_not_exit(self):
        calls = []
        exit_on_input_error(lambda: calls.append('main'))
        assert calls == ['main']


# A tool of three functions: in another package, in mmasr, and its main, which uses both.
TOOL = """
import sys
from mmasr.errors import InputError, as_input_error, exit_on_input_error
names = dict(InputError=InputError)
inside, case = sys.argv[1:]
exec(compile('def bug(): 1 / 0', inside, 'exec'), names)

def main():
    if case == 'plain':
        raise InputError('a.pth: not a checkpoint; pass `config`')
    if case == 'chained to an InputError':
        try:
            raise InputError('not a checkpoint')
        except InputError as error:
            raise InputError(f'a.pth: {error}') from error
    if case == 'chained to a foreign error':
        with as_input_error('a.pth does not load'):
            {}['weight']
    if case == 'foreign':
        raise RuntimeError('out of memory')
    if case == 'bug':
        names['bug']()

exit_on_input_error(main)
"""
HINT = ' (MMASR_TRACEBACK=1 shows the traceback)'
LINES = {
    'plain': 'error: a.pth: not a checkpoint; pass --config',
    'chained to an InputError': 'error: a.pth: not a checkpoint',
    'chained to a foreign error': f"error: a.pth does not load: KeyError: 'weight'{HINT}",
    'foreign': f'error: the run failed: RuntimeError: out of memory{HINT}',
}


class TestTheProcessOfATool:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch):
        monkeypatch.delenv('MMASR_TRACEBACK', raising=False)

    @pytest.mark.parametrize('case', LINES)
    def test_it_prints_one_line_and_exits_with_1(self, case):
        result = run_python(TOOL, INSIDE, case)
        assert result.returncode == 1
        assert result.stdout == ''
        assert result.stderr == f'{LINES[case]}\n'

    @pytest.mark.parametrize('case', LINES)
    def test_it_prints_the_traceback_too_if_asked_for(self, case, monkeypatch):
        monkeypatch.setenv('MMASR_TRACEBACK', '1')
        result = run_python(TOOL, INSIDE, case)
        assert result.returncode == 1
        assert result.stderr.startswith('Traceback (most recent call last):\n')
        assert result.stderr.endswith(f'\n{LINES[case]}\n')

    def test_it_prints_the_traceback_of_a_bug_and_says_that_it_is_one(self):
        result = run_python(TOOL, INSIDE, 'bug')
        assert result.returncode == 1
        *traceback, last = result.stderr.splitlines()
        assert traceback[0] == 'Traceback (most recent call last):'
        assert traceback[-1] == 'ZeroDivisionError: division by zero'
        assert any(f'"{INSIDE}", line 1, in bug' in line for line in traceback)
        assert last == 'error: this is a bug in mmasr; please report it with the traceback above'


class TestOneLine:
    def test_it_names_the_kind_of_a_foreign_error_but_not_of_an_input_error(self):
        assert one_line('a.pth', RuntimeError('damaged')) == 'a.pth: RuntimeError: damaged'
        assert one_line('a.pth', InputError('damaged')) == 'a.pth: damaged'

    def test_of_a_dataloader_worker_it_shows_the_error_itself(self):
        error = from_worker(fail(OUTSIDE, "raise OSError('a.jpg is damaged')"))
        assert (
            one_line('the data does not load', error) == 'the data does not load: OSError: a.jpg is damaged'
        )


def test_printable_escapes_all_but_printable_characters_and_line_breaks():
    assert printable('κ ä\n\x07\x1b[31m\u202e') == 'κ ä\n\\x07\\x1b[31m\\u202e'
    assert printable(Path('a.pth')) == 'a.pth'


def test_shortened_lists_five_names():
    assert shortened(['a', 'b']) == 'a, b'
    assert shortened([*'abcde']) == 'a, b, c, d, e'
    assert shortened([*'abcdefg']) == 'a, b, c, d, e and 2 more'
    assert shortened(['a\x1b[2J']) == r"'a\x1b[2J'"
