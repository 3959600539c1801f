"""Python programs in processes of their own, which are forked from one that has imported what takes them longest to import:
nothing of ours, and no library that registers networks."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['torch', 'torchvision', 'mmengine.runner', 'mmcv.ops', 'matplotlib.pyplot', 'pycocotools.coco'])


def run_python(program: Path | str, *args, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a file, or code, as ``python`` does, and return what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ('stdout', 'stderr')]
        argv = [str(program) if isinstance(program, Path) else '-c', *map(str, args)]
        process = SERVER.Process(target=_run, args=(program, argv, cwd or Path.cwd(), dict(os.environ), outputs))
        process.start()
        process.join()
        return subprocess.CompletedProcess(argv, process.exitcode, *(Path(file).read_text() for file in outputs))


def _run(program: Path | str, argv: list[str], cwd: Path, environment: dict[str, str], outputs: list[str]) -> None:
    for descriptor, file in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = argv
    sys.path.remove(os.path.dirname(__file__))  # of the tests, which are none of the program's
    np.random.seed()  # every fork has the state of the one process
    if isinstance(program, Path):
        runpy.run_path(str(program), run_name='__main__')
    else:
        exec(program, {'__name__': '__main__'})
