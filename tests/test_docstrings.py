"""Tests of the form of all docstrings, as far as ruff does not check it."""

import ast

import pytest
from helpers import ROOT

FILES = [
    path
    for folder in ('mmasr', 'tools')
    for path in sorted((ROOT / folder).rglob('*.py'))
    if '.mim' not in path.parts  # links to configs and tools
]
#: A docstring that starts with one of these words is a clause, not a sentence or a noun phrase.
CLAUSES = {'What', 'Whether', 'Which', 'That', 'Where', 'How'}
#: The docstring of a function starts with a verb, so not with one of these.
NO_VERBS = {*CLAUSES, 'The', 'A', 'An', 'All', 'Each', 'Every', 'Its', 'No', 'One', 'This'}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def names_of_arguments(function: Function) -> list[str]:
    """Return the names of all arguments except self and cls."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    other = [argument for argument in (given.vararg, given.kwarg) if argument]
    return [argument.arg for argument in (*named, *other) if argument.arg not in ('self', 'cls')]


def raises(node: ast.AST) -> bool:
    """Return whether a function itself, without the functions inside it, raises an exception.

    A bare ``raise`` only passes on an exception.
    """
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    children = [child for child in ast.iter_child_nodes(node) if not isinstance(child, inner)]
    return any((isinstance(child, ast.Raise) and child.exc) or raises(child) for child in children)


def is_property(function: Function) -> bool:
    return any('property' in ast.unparse(decorator) for decorator in function.decorator_list)


def public_functions(node: ast.Module | ast.ClassDef) -> list[Function]:
    """Return the public functions of a module and the public methods of its public classes."""
    found = []
    for child in node.body:
        if isinstance(child, Function) and not child.name.startswith('_'):
            found.append(child)
        elif isinstance(child, ast.ClassDef) and not child.name.startswith('_'):
            found += public_functions(child)
    return found


def without_sections(tree: ast.Module) -> list[str]:
    """Return the public functions whose docstring lacks a section ``Args:`` or ``Raises:``.

    ruff checks that there is a docstring, where one is required.
    """
    found = []
    for function in public_functions(tree):
        docstring = ast.get_docstring(function)
        if docstring is None:  # main and parse_args of a tool
            continue
        sections = [line.strip() for line in docstring.splitlines()]
        if len(names_of_arguments(function)) > 1 and 'Args:' not in sections:
            found.append(f'line {function.lineno}: {function.name} has no "Args:"')
        if raises(function) and 'Raises:' not in sections:
            found.append(f'line {function.lineno}: {function.name} has no "Raises:"')
    return found


def wrong_starts(tree: ast.Module) -> list[str]:
    """Return the docstrings that start with a forbidden word."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | Function):
            continue
        words = (ast.get_docstring(node) or '').split(maxsplit=1)
        is_function = isinstance(node, Function) and not is_property(node)
        if words and words[0] in (NO_VERBS if is_function else CLAUSES):
            name = getattr(node, 'name', 'the module')
            found.append(f'line {getattr(node, "lineno", 1)}: {name} starts with "{words[0]}"')
    return found


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_have_their_sections_and_start_with_a_verb_or_a_noun(path):
    tree = ast.parse(path.read_text())
    problems = without_sections(tree) + wrong_starts(tree)
    assert not problems, '\n'.join([f'{path}:', *problems])


EXAMPLE = '''
"""Whether this is a module."""

def one_argument(x, /):
    """Return x."""

def two(x, *, y):
    """Add x and y."""

def documented(x, **options):
    """Do it.

    Args:
        x (int): A number.
        **options: Options.
    """

class Public:
    """What a class is."""

    def method(self, x):
        """See :meth:`Base.method`."""

    def raises(self):
        """Check it."""
        if self:
            raise ValueError

    def only_inside(self):
        """Return a function that raises."""
        def inner():
            """The function."""
            raise ValueError
        return inner

    @classmethod
    def two(cls, *args, **options):
        """Add them.

        Raises:
            ValueError: Always.
        """
        raise ValueError

    @property
    def size(self):
        """The size."""

    def _private(self, x, y):
        """A private method."""

class _Private:
    def method(self, x, y):
        """Add x and y."""
'''


def test_missing_sections_are_found():
    assert without_sections(ast.parse(EXAMPLE)) == [
        'line 7: two has no "Args:"',
        'line 24: raises has no "Raises:"',
        'line 37: two has no "Args:"',
    ]


def test_wrong_starts_are_found():
    assert sorted(wrong_starts(ast.parse(EXAMPLE))) == [
        'line 18: Public starts with "What"',
        'line 1: the module starts with "Whether"',
        'line 31: inner starts with "The"',
        'line 49: _private starts with "A"',
    ]
