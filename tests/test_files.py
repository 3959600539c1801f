"""A pair of files is replaced as a whole, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmasr.errors import InputError
from mmasr.files import output_files, temporary_files

NAMES = 'a.pth', 'a.py'
SOURCE = Path(__file__)  # stands for the checkpoint that is read
OLD, NEW, NONE = ('old', 'old'), ('new', 'new'), (None, None)


def paths(folder):
    return [folder / name for name in NAMES]


def pair(folder):
    return tuple(path.read_text() if path.exists() else None for path in paths(folder))


def write(folder, content='new', force=True, error=None):
    with temporary_files(*paths(folder), force=force) as files:
        for file in files:
            file.write_text(content)
        if error:
            raise error


def fail():
    raise OSError(28, 'No space left on device')


HAPPENS = {
    'nothing': lambda: None,
    'error': fail,
    'death': lambda: os.kill(os.getpid(), signal.SIGKILL),
    'interrupt': lambda: os.kill(os.getpid(), signal.SIGINT),
    'termination': lambda: os.kill(os.getpid(), signal.SIGTERM),
}


def write_until(step, folder, happens):
    """Write in a process of its own, in which something happens right before its n-th change of the disk; its exit status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        steps = iter(range(step + 1))

        def hook(event, args):
            named = [str(arg) for arg in args]
            changes = event in ('os.mkdir', 'os.rename', 'os.link', 'os.remove', 'os.rmdir') or (
                event == 'open' and 'r' not in str(args[1])
            )
            if changes and any('a.p' in name for name in named) and next(steps, None) == step:
                HAPPENS[happens]()

        sys.addaudithook(hook)
        write(folder)
        status = 2 if step in steps else 0  # 2: it came to its end before that step
    except (InputError, KeyboardInterrupt, SystemExit):
        status = 3
    finally:
        os._exit(status)


def serve():
    """Do as the lines on standard input say. This is a small process, unlike that of the tests, which takes long to fork."""
    for line in sys.stdin:
        step, folder, happens = json.loads(line)
        print(write_until(step, Path(folder), happens), flush=True)


@pytest.fixture(scope='module')
def server():
    code, path = 'import test_files; test_files.serve()', os.pathsep.join([str(SOURCE.parent), *sys.path])
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True, 'env': {**os.environ, 'PYTHONPATH': path}}
    with subprocess.Popen([sys.executable, '-c', code], **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def at_step(server, tmp_path):
    """As :func:`write_until`, in the folder of the test."""

    def run(step, happens):
        print(json.dumps([step, str(tmp_path), happens]), file=server.stdin, flush=True)
        return int(server.stdout.readline())

    return run


@pytest.fixture(params=[OLD, NONE], ids=['replaced', 'new'])
def before(request, tmp_path):
    """What is there before; twice, of which the second tells which run it was."""
    for path, content in zip(paths(tmp_path), request.param, strict=True):
        if content:
            path.write_text(content)
    return request.param


def put_back(folder, content):
    for path, text in zip(paths(folder), content, strict=True):
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)


@pytest.fixture
def steps(at_step, tmp_path, before):
    """Have something happen at every step, one after the other, with the pair as it was; give the exit status of each."""

    def run(happens):
        for step in range(100):
            put_back(tmp_path, before)
            status = at_step(step, happens)
            if status == 2:
                assert step > 8  # there were some
                return
            yield status
        raise AssertionError('it never came to its end')

    return run


def test_a_death_at_any_step_loses_and_mixes_nothing(tmp_path, before, steps):
    for status in steps('death'):
        assert status == -signal.SIGKILL
        weights, config = pair(tmp_path)
        assert weights != 'new' or config == 'new'
        assert before == NONE or None not in (weights, config)
        # The next run puts in order what is left, even one that is then refused.
        output_files(SOURCE, tmp_path / 'a.pth', force=True)
        assert pair(tmp_path) in (before, NEW)
        assert {path.name for path in tmp_path.iterdir()} <= set(NAMES)


def test_a_death_while_a_death_is_undone_loses_nothing_either(tmp_path, before, steps, at_step):
    between = 1 + sum(1 for _ in steps('nothing'))
    deaths = 0
    for first in range(between):
        for second in range(0, 12, 2):
            put_back(tmp_path, before)
            at_step(first, 'death')
            deaths += at_step(second, 'death') == -signal.SIGKILL
            output_files(SOURCE, tmp_path / 'a.pth', force=True)
            assert pair(tmp_path) in (before, NEW)
    assert deaths > 25


def test_an_error_at_any_step_leaves_what_was_there(tmp_path, before, steps):
    for status in steps('error'):
        assert pair(tmp_path) == (before if status == 3 else NEW)
        output_files(SOURCE, tmp_path / 'a.pth', force=True)
        assert {path.name for path in tmp_path.iterdir()} <= set(NAMES)


@pytest.mark.parametrize('signal_name', ['interrupt', 'termination'])
def test_an_interrupt_at_any_step_leaves_a_pair(tmp_path, before, steps, signal_name):
    for status in steps(signal_name):
        assert status in (3, 0, -signal.SIGINT, -signal.SIGTERM)
        assert pair(tmp_path) in (before, NEW)


def test_a_signal_that_comes_while_files_are_written_cleans_up(tmp_path):
    """As a user's shell or a scheduler sends it to a tool."""
    code = f"""
import time
from pathlib import Path
from mmasr.files import temporary_files
with temporary_files(Path({str(tmp_path / 'a.pth')!r})) as files:
    files[0].write_text('half')
    print('writing', flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'writing\n'
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ['.a.pth.writing']
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_who_comes_second_is_refused_while_another_writes(tmp_path):
    with temporary_files(*paths(tmp_path), force=False) as files:
        for file in files:
            file.write_text('new')
        with pytest.raises(InputError, match='another process is writing it'):
            write(tmp_path, 'other')
        with pytest.raises(InputError, match='another process is writing it'):
            output_files(SOURCE, tmp_path / 'a.pth', force=True)
    assert pair(tmp_path) == NEW


@pytest.mark.parametrize('name', NAMES)
def test_what_has_come_meanwhile_is_not_replaced_unasked(tmp_path, name):
    output_files(SOURCE, tmp_path / 'a.pth', force=False)
    (tmp_path / name).write_text('other')
    with pytest.raises(InputError, match=rf'{name} is there already'):
        write(tmp_path, force=False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['other']


@pytest.mark.parametrize('name', NAMES)
def test_a_link_that_leads_nowhere_is_there(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / 'gone')
    with pytest.raises(InputError, match=rf'{name} is there already'):
        output_files(SOURCE, tmp_path / 'a.pth', force=False)
    with pytest.raises(InputError, match=rf'{name} is there already'):
        write(tmp_path, force=False)
    assert (tmp_path / name).is_symlink()
    output_files(SOURCE, tmp_path / 'a.pth', force=True)
    write(tmp_path)
    assert pair(tmp_path) == NEW
    assert not (tmp_path / 'gone').exists()


def test_the_checkpoint_that_is_read_is_never_replaced(tmp_path):
    (tmp_path / 'a.pth').write_text('old')
    with pytest.raises(InputError, match=r'a\.pth is there already'):
        output_files(tmp_path / 'a.pth', tmp_path / 'a.pth', force=True)


def test_an_error_in_between_leaves_what_was_there(tmp_path, before):
    with pytest.raises(RuntimeError):
        write(tmp_path, error=RuntimeError())
    assert pair(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} <= set(NAMES)


@pytest.mark.parametrize('name', ['x' * 300, 'x' * 245])
def test_a_name_that_is_too_long_is_one_line(tmp_path, name):
    with pytest.raises(InputError, match="can't write here: File name too long; nothing was changed"):
        output_files(SOURCE, tmp_path / f'{name}.pth', force=False)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match="can't write here: No such file or directory; nothing was changed"):
        output_files(SOURCE, tmp_path / 'none/a.pth', force=False)
