"""A pair of files is replaced completely or not at all, whatever happens during the write."""

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
SOURCE = Path(__file__)  # stands in for the checkpoint that is read
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


EVENTS = {
    'nothing': lambda: None,
    'error': fail,
    'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
    'interrupt': lambda: os.kill(os.getpid(), signal.SIGINT),
    'termination': lambda: os.kill(os.getpid(), signal.SIGTERM),
}


def write_until(step, folder, event):
    """Write in a forked process, in which an event occurs right before change number ``step`` of the disk.

    Return its exit status: 0 if the write succeeded, 3 if it failed or was interrupted, 2 if it ended before
    that change, or the negative number of the signal that killed it.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        steps = iter(range(step + 1))

        def hook(call, args):
            changes = call in ('os.mkdir', 'os.rename', 'os.link', 'os.remove', 'os.rmdir') or (
                call == 'open' and 'r' not in str(args[1])
            )
            if changes and any('a.p' in str(arg) for arg in args) and next(steps, None) == step:
                EVENTS[event]()

        sys.addaudithook(hook)
        write(folder)
        status = 2 if step in steps else 0
    except (InputError, KeyboardInterrupt, SystemExit):
        status = 3
    finally:
        os._exit(status)


def serve():
    """Call :func:`write_until` for each line of the standard input. Forking this small process is fast."""
    for line in sys.stdin:
        step, folder, event = json.loads(line)
        print(write_until(step, Path(folder), event), flush=True)


@pytest.fixture(scope='module')
def server():
    code, path = 'import test_files; test_files.serve()', os.pathsep.join([str(SOURCE.parent), *sys.path])
    pipes = {
        'stdin': subprocess.PIPE,
        'stdout': subprocess.PIPE,
        'text': True,
        'env': {**os.environ, 'PYTHONPATH': path},
    }
    with subprocess.Popen([sys.executable, '-c', code], **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def at_step(server, tmp_path):
    """Return :func:`write_until` for the folder of the test."""

    def run(step, event):
        print(json.dumps([step, str(tmp_path), event]), file=server.stdin, flush=True)
        return int(server.stdout.readline())

    return run


@pytest.fixture(params=[OLD, NONE], ids=['replaced', 'new'])
def before(request, tmp_path):
    """Create the old files, if there are any, and return their contents."""
    for path, content in zip(paths(tmp_path), request.param, strict=True):
        if content:
            path.write_text(content)
    return request.param


def restore(folder, content):
    for path, text in zip(paths(folder), content, strict=True):
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)


@pytest.fixture
def steps(at_step, tmp_path, before):
    """Let an event occur at each step in turn, each time from the same start; yield the exit statuses."""

    def run(event):
        for step in range(100):
            restore(tmp_path, before)
            status = at_step(step, event)
            if status == 2:
                assert step > 8  # the hook saw the changes
                return
            yield status
        raise AssertionError('the write never ended')

    return run


def test_a_kill_at_any_step_neither_loses_nor_mixes_files(tmp_path, before, steps):
    for status in steps('kill'):
        assert status == -signal.SIGKILL
        weights, config = pair(tmp_path)
        assert weights != 'new' or config == 'new'
        assert before == NONE or None not in (weights, config)
        # The next run cleans up.
        output_files([SOURCE], tmp_path / 'a.pth', force=True)
        assert pair(tmp_path) in (before, NEW)
        assert {path.name for path in tmp_path.iterdir()} <= set(NAMES)


def test_a_second_kill_during_the_cleanup_loses_nothing(tmp_path, before, steps, at_step):
    between = 1 + sum(1 for _ in steps('nothing'))
    kills = 0
    for first in range(between):
        for second in range(0, 12, 2):
            restore(tmp_path, before)
            at_step(first, 'kill')
            kills += at_step(second, 'kill') == -signal.SIGKILL
            output_files([SOURCE], tmp_path / 'a.pth', force=True)
            assert pair(tmp_path) in (before, NEW)
    assert kills > 25


def test_an_error_at_any_step_keeps_the_old_files(tmp_path, before, steps):
    for status in steps('error'):
        assert pair(tmp_path) == (before if status == 3 else NEW)
        output_files([SOURCE], tmp_path / 'a.pth', force=True)
        assert {path.name for path in tmp_path.iterdir()} <= set(NAMES)


@pytest.mark.parametrize('signal_name', ['interrupt', 'termination'])
def test_an_interrupt_at_any_step_leaves_a_matching_pair(tmp_path, before, steps, signal_name):
    for status in steps(signal_name):
        assert status in (3, 0, -signal.SIGINT, -signal.SIGTERM)
        assert pair(tmp_path) in (before, NEW)


def test_sigterm_during_the_write_cleans_up(tmp_path):
    """A shell or a scheduler sends this signal to a tool."""
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


def test_a_second_writer_is_refused(tmp_path):
    with temporary_files(*paths(tmp_path), force=False) as files:
        for file in files:
            file.write_text('new')
        with pytest.raises(InputError, match='another process is writing it'):
            write(tmp_path, 'other')
        with pytest.raises(InputError, match='another process is writing it'):
            output_files([SOURCE], tmp_path / 'a.pth', force=True)
    assert pair(tmp_path) == NEW


@pytest.mark.parametrize('name', NAMES)
def test_a_file_created_after_the_check_is_not_replaced_without_force(tmp_path, name):
    output_files([SOURCE], tmp_path / 'a.pth', force=False)
    (tmp_path / name).write_text('other')
    with pytest.raises(InputError, match=rf'{name} already exists'):
        write(tmp_path, force=False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['other']


@pytest.mark.parametrize('name', NAMES)
def test_a_broken_link_counts_as_existing(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / 'gone')
    with pytest.raises(InputError, match=rf'{name} already exists'):
        output_files([SOURCE], tmp_path / 'a.pth', force=False)
    with pytest.raises(InputError, match=rf'{name} already exists'):
        write(tmp_path, force=False)
    assert (tmp_path / name).is_symlink()
    output_files([SOURCE], tmp_path / 'a.pth', force=True)
    write(tmp_path)
    assert pair(tmp_path) == NEW
    assert not (tmp_path / 'gone').exists()


def test_an_error_in_the_body_keeps_the_old_files(tmp_path, before):
    with pytest.raises(RuntimeError):
        write(tmp_path, error=RuntimeError())
    assert pair(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} <= set(NAMES)


@pytest.mark.parametrize('name', ['x' * 300, 'x' * 245])
def test_a_name_that_is_too_long_is_an_input_error(tmp_path, name):
    with pytest.raises(InputError, match="can't write here: File name too long; nothing was changed"):
        output_files([SOURCE], tmp_path / f'{name}.pth', force=False)


def test_a_missing_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="can't write here: No such file or directory; nothing was changed"):
        output_files([SOURCE], tmp_path / 'none/a.pth', force=False)


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    write(tmp_path)
    for path, mode in zip(paths(tmp_path), (0o600, 0o640), strict=True):
        path.chmod(mode)
    write(tmp_path)
    assert [path.stat().st_mode & 0o777 for path in paths(tmp_path)] == [0o600, 0o640]


def test_a_lock_that_is_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    (tmp_path / '.a.pth.lock').symlink_to(tmp_path / 'mine.txt')
    with pytest.raises(InputError, match='is a symbolic link; remove it'):
        write(tmp_path)
    assert (tmp_path / 'mine.txt').read_text() == 'mine'


def test_no_input_is_replaced_even_with_force(tmp_path):
    write(tmp_path)
    for number, path in enumerate(paths(tmp_path)):
        inputs = [tmp_path / 'other', path] if number else [path]
        with pytest.raises(InputError, match=rf'{path.name} already exists'):
            output_files(inputs, tmp_path / 'a.pth', force=True)
