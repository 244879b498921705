"""Starts and stops servers, and finds what is installed."""
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

START_SECONDS_MAX = 120
STOP_SECONDS_MAX = 10
POLL_SECONDS = 0.05


class Unavailable(Exception):
    """A peer that is not here; says what was looked for."""


def free_port():
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def program(path):
    """The full path of a program; a name is looked up in PATH."""
    found = shutil.which(path)
    if found is None:
        raise Unavailable(f"no program {path}")
    return found


def has_module(python, name):
    """Whether an interpreter finds a module."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({name!r}) is None)"
    return subprocess.run([program(python), "-c", code], stderr=subprocess.DEVNULL).returncode == 0


def wait_until(ready, process, line):
    """Waits for `ready()`; gives up if the process ends first or takes too long, and leaves it to the caller."""
    began = time.monotonic()
    while not ready():
        if process.poll() is not None or time.monotonic() - began > START_SECONDS_MAX:
            raise SystemExit(f"did not start: {' '.join(map(str, line))}")
        time.sleep(POLL_SECONDS)


@contextmanager
def stopped_on_failure(process):
    """Stops a process when what is done here with it fails or is interrupted."""
    try:
        yield
    except BaseException:
        stop(process)
        raise


def stop(process):
    """Asks a process to end, and makes it end if it does not; closes what it wrote to."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()
