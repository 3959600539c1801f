"""The command ``mmasr``, whose subcommands are the tools: ``mmasr train my_config.py`` is ``tools/train.py my_config.py``."""

import ast
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import mmasr

TOOLS = {path.stem: path for path in sorted(Path(__file__).parent.glob('.mim/tools/*.py'))}


def main() -> None:
    """Run the tool that the first argument names, with those after it."""
    name = sys.argv[1] if sys.argv[1:] else '--help'
    if name == '--version':
        print(f'mmasr {mmasr.__version__}')
    elif name in ('-h', '--help'):
        print('usage: mmasr TOOL ...\n')
        for tool, path in TOOLS.items():
            print(f'  {tool:10} {ast.get_docstring(ast.parse(path.read_text())).partition(": ")[0].splitlines()[0]}')
        print('\nmmasr TOOL --help says what a tool takes.')
    elif name in TOOLS:
        sys.argv[:2] = [f'mmasr {name}']
        try:
            runpy.run_path(str(TOOLS[name]), run_name='__main__')
        except ModuleNotFoundError as error:
            if find_spec('mmengine'):
                raise
            sys.exit(f"error: mmasr {name} needs OpenMMLab: pip install 'mmasr[openmmlab]' ({error})")
    else:
        sys.exit(f'error: mmasr {name}: no such tool; there are {", ".join(TOOLS)}')


if __name__ == '__main__':
    main()
