"""Run Python programs and functions in new processes, forked from one that has done the slow imports."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import numpy as np
from torch.multiprocessing import start_processes

TESTS = os.path.dirname(__file__)
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['preloaded'])


def _start_server() -> None:
    with mock.patch.dict(os.environ, PYTHONPATH=TESTS):  # the server imports `preloaded`
        forkserver.ensure_running()


def run_ranks(function: Callable, *args) -> None:
    """Call ``function(rank, *args)`` in two processes, one for each rank."""
    _start_server()
    start_processes(function, args, nprocs=2, start_method='forkserver')


def run_python(
    program: Path | str, *args, cwd: Path | None = None, without: Collection[str] = ()
) -> subprocess.CompletedProcess:
    """Run a file or code as ``python`` does.

    Args:
        program (Path | str): The file, or the code itself.
        *args: Its command-line arguments.
        cwd (Path, optional): Its working directory. Default: that of this process.
        without (Collection[str]): Packages that it cannot import.

    Returns:
        subprocess.CompletedProcess: Its exit status and output.
    """
    _start_server()
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ('stdout', 'stderr')]
        argv = [str(program) if isinstance(program, Path) else '-c', *map(str, args)]
        process = SERVER.Process(
            target=_run, args=(program, argv, cwd or Path.cwd(), without, dict(os.environ), outputs)
        )
        process.start()
        process.join()
        return subprocess.CompletedProcess(
            argv, process.exitcode, *(Path(file).read_text() for file in outputs)
        )


def _run(
    program: Path | str,
    argv: list[str],
    cwd: Path,
    without: Collection[str],
    environment: dict[str, str],
    outputs: list[str],
) -> None:
    for descriptor, file in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.modules.update({name: None for name in (*without, *sys.modules) if name.partition('.')[0] in without})
    sys.argv = argv
    sys.path.remove(TESTS)  # only the server needs it
    np.random.seed()  # every fork starts with the server's random state
    if isinstance(program, Path):
        runpy.run_path(str(program), run_name='__main__')
    else:
        exec(program, {'__name__': '__main__'})
