"""The command ``mmasr``, whose subcommands are the tools: ``mmasr train my_config.py`` is ``tools/train.py my_config.py``.

An argument ``mmasr::mask_rcnn_r50_asr_se.py`` is that config of the package.
"""

import ast
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import mmasr

PACKAGED = Path(__file__).parent / '.mim'
TOOLS = {path.stem: path for path in sorted(PACKAGED.glob('tools/*.py'))}


def main() -> None:
    """Run the tool that the first argument names, with those after it."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name == '--version':
        print(f'mmasr {mmasr.__version__}')
    elif name in ('-h', '--help'):
        print('usage: mmasr TOOL ...\n')
        for tool, path in TOOLS.items():
            print(f'  {tool:10} {ast.get_docstring(ast.parse(path.read_text())).partition(": ")[0].splitlines()[0]}')
        print('\nmmasr TOOL --help says what a tool takes.')
    elif name in TOOLS:
        sys.argv = [f'mmasr {name}', *(re.sub('^mmasr::', f'{PACKAGED}/configs/', argument) for argument in arguments)]
        try:
            # runpy would give the tool another name in what it prints.
            exec(compile(TOOLS[name].read_bytes(), TOOLS[name], 'exec'), {'__name__': '__main__', '__file__': str(TOOLS[name])})
        except ModuleNotFoundError as error:
            if find_spec('mmengine'):
                raise
            sys.exit(f"error: mmasr {name} needs OpenMMLab: pip install 'mmasr[openmmlab]' ({error})")
    else:
        sys.exit(f'error: mmasr {name}: no such tool; there are {", ".join(TOOLS)}')


if __name__ == '__main__':
    main()
