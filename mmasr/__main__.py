"""The command ``mmasr``, whose subcommands are the tools.

``mmasr train my_config.py`` runs ``tools/train.py my_config.py``. An argument such as
``mmasr::mask_rcnn_r50_asr_se.py`` means that config of the package.
"""

import ast
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import mmasr

PACKAGED = Path(__file__).parent / '.mim'
TOOLS = {path.stem: path for path in sorted(PACKAGED.glob('tools/*.py'))}


def main() -> None:
    """Run the tool that the first argument names; pass it the remaining arguments."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name == '--version':
        print(f'mmasr {mmasr.__version__}')
    elif name in ('-h', '--help'):
        print('usage: mmasr TOOL ...\n')
        for tool, path in TOOLS.items():
            print(f'  {tool:14} {_summary(path)}')
        print('\nRun mmasr TOOL --help for the arguments of a tool.')
    elif name in TOOLS:
        _run(name, arguments)
    else:
        sys.exit(f'error: mmasr {name}: no such tool; choose from {", ".join(TOOLS)}')


def _summary(tool: Path) -> str:
    """Return the first line of a tool's docstring, without the period."""
    return ast.get_docstring(ast.parse(tool.read_text())).splitlines()[0].removesuffix('.')


def _run(name: str, arguments: Sequence[str]) -> None:
    path = TOOLS[name]
    arguments = [re.sub('^mmasr::', f'{PACKAGED}/configs/', argument) for argument in arguments]
    sys.argv = [f'mmasr {name}', *arguments]
    try:
        # Not runpy: it would replace the name of the tool, which `usage:` shows.
        exec(compile(path.read_bytes(), path, 'exec'), {'__name__': '__main__', '__file__': str(path)})
    except ModuleNotFoundError as error:
        if find_spec('mmengine'):
            raise
        sys.exit(f'error: mmasr {name} needs OpenMMLab: install the extra openmmlab of mmasr ({error})')


if __name__ == '__main__':
    main()
