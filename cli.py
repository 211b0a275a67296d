"""Helpers of the scripts: signals, exit status, option types, replacing and locking files.

Uses the standard library only.

A user error prints one line on stderr, and the exit status is 2. Ctrl-C prints one line, and the exit status is 130.
"""

import argparse
import atexit
import contextlib
import errno
import importlib.util
import os
import signal
import sys
import threading
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has msvcrt instead.
    fcntl = None
    import msvcrt

# Ctrl-C, kill, a closed terminal, and Ctrl-Break. Windows has no SIGHUP, other systems have no SIGBREAK.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]

NEW_PREFIX = ".new-"  # Prefix of a file while it is written. A kill leaves such a file behind.
# Seconds before each further attempt to rename a file. On Windows, a virus scanner may hold a new file for a moment.
RENAME_PAUSES = (0.1, 0.2, 0.4, 0.8) if sys.platform == "win32" else ()


def handle_signals(handler):
    """Installs a handler for `SIGNALS`. A signal that is ignored, as under nohup, stays ignored."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def check_installed(script, requirements, *packages):
    """Ends a script with one line if a package is missing. `requirements` is the file that installs all of them."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        remedy = f"Install it: {sys.executable} -m pip install -r {requirements}"
        print(f"{script}: {missing[0]} is not installed for this Python. {remedy}", file=sys.stderr)
        sys.exit(2)


def run_script(script, run):
    """Calls `run`, which may return an exit status, and returns the exit status of the script.

    SIGTERM and SIGHUP raise KeyboardInterrupt in `run`, as Ctrl-C does. If the reader of a pipe closes it, as `head`
    does, the script ends quietly.
    """
    handle_signals(signal.default_int_handler)
    atexit.register(handle_signals, signal.SIG_IGN)  # While Python shuts down.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Escape characters that the terminal lacks. Not in a notebook.
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run() or 0
        if sys.stdout:  # None under pythonw.
            sys.stdout.flush()  # Inside `try`, to catch a full disk or a closed pipe.
        return status
    except BrokenPipeError:
        discard_output()
        return 0
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            discard_output()
        print(f"{script}: {' '.join(explain(error).split())}", file=sys.stderr)  # On one line.
        return 2
    except MemoryError:
        print(f"{script}: not enough memory. Close other programs, or use smaller files.", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{script}: stopped. {interrupt}".strip(), file=sys.stderr)
        return 130


def explain(error):
    """Returns the message of an error. For an error of the operating system, it adds the next step."""
    if not getattr(error, "strerror", None):
        return str(error)
    path = error.filename2 or error.filename  # Two if renaming failed.
    remedy = "Free some space." if error.errno == errno.ENOSPC else "Check the path, or choose another."
    remedy += f" The content is still in {error.filename}." if error.filename2 else ""
    return f"{path}: {error.strerror}. {remedy}" if path else f"{error.strerror}. {remedy}"


def discard_output():
    """Redirects stdout to the null device, so that Python's last flush does not raise again."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """Shows a script's docstring as its help, and a usage error as one line."""

    def __init__(self, description):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(usage=argparse.SUPPRESS, description=description, formatter_class=formatter)


@contextlib.contextmanager
def replaced(path):
    """Yields a temporary path with the same suffix.

    On success, the file there replaces `path`. On an error, it is deleted. It stays if `path` cannot be replaced: on
    Windows, while another program has `path` open.
    """
    temporary = path.with_name(f"{NEW_PREFIX}{os.getpid()}-{path.name[-40:]}")  # Names have at most 255 bytes.
    try:
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if temporary.exists():  # A video without frames has no file.
        rename(temporary, path)


def rename(path, target):
    """Renames a file or folder, with further attempts after `RENAME_PAUSES`."""
    for pause in RENAME_PAUSES:
        with contextlib.suppress(PermissionError):
            return path.replace(target)
        time.sleep(pause)
    return path.replace(target)


def lock(file):
    """Locks an open file until it is closed or its process ends. Returns False if another process has locked it."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(file.fileno(), 2**30, os.SEEK_SET)  # A byte far beyond the end: locked bytes cannot be read.
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # Some network drives have no locks.
    return True


def path(text):
    """Type of a command-line option that names a file or folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("must be a path, but it is empty or contains a null character.")
    return Path(text)


def whole_number(lowest, highest):
    """Returns the type of a command-line option for whole numbers within a range."""

    def parse(text):
        if not text.isdecimal() or len(text) > 20 or not lowest <= int(text) <= highest:
            rule = f"must be a whole number from {lowest} to {highest}"
            raise argparse.ArgumentTypeError(f"{rule}, but it is {text[:40]}.")
        return int(text)

    return parse
