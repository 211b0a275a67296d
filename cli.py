"""What the scripts share as commands: signals, exit status, messages. Uses the standard library only.

A mistake of the user's ends in one line on stderr and status 2. Ctrl-C ends in one line and status 130, at any moment.
"""

import argparse
import atexit
import contextlib
import errno
import os
import signal
import sys
import threading
from pathlib import Path

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a kill, a closed terminal. Windows has no SIGHUP.
OLDEST_PYTHON = (3, 11)


def handle_signals(handler):
    """Installs a handler for `SIGNALS`. A signal that is ignored, as under nohup, stays ignored."""
    if threading.current_thread() is threading.main_thread():
        for number in [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


@contextlib.contextmanager
def importing(module, script):
    """Returns a context for a script's imports, which take seconds: Ctrl-C and missing packages end in one line.

    Args:
        module: `__name__` of the script. When another module imports it, nothing is changed.
        script: its file name, for messages.
    """
    if module != "__main__":
        yield
        return
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        sys.exit(f"{script}: Python {oldest} or later is needed. Run it with: python{oldest} {script}")
    stderr = os.dup(2) if sys.stderr else None  # A copy, because an import may run while stderr is hidden.

    def stop(*_):
        if stderr is not None:
            os.write(stderr, f"{script}: stopped.\n".encode())
        os._exit(130)

    handle_signals(stop)
    try:
        yield
    except ImportError as error:
        print(f"{script}: {error}. Install what is missing: pip install -r requirements.txt", file=sys.stderr)
        sys.exit(2)


def run_script(script, run):
    """Runs a script's work and returns its exit status.

    SIGTERM and SIGHUP raise KeyboardInterrupt in `run`, as Ctrl-C does. A reader that closes the pipe early ends the
    script quietly.

    Args:
        script: its file name, for messages.
        run: function without arguments; may return an exit status.
    """
    handle_signals(signal.default_int_handler)
    atexit.register(handle_signals, signal.SIG_IGN)  # A signal while Python shuts down changes nothing any more.
    escape_unprintable_output()
    try:
        status = run() or 0
        if sys.stdout:  # None under pythonw.
            sys.stdout.flush()  # Here, where a full disk or a closed pipe is still caught.
        return status
    except BrokenPipeError:
        discard_output()
        return 0
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            discard_output()
        print(f"{script}: {describe_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{script}: stopped. {interrupt}".strip(), file=sys.stderr)
        return 130


def describe_error(error):
    """Returns an error on one line, `<file>: <reason>.` where the system names the file."""
    from_system = getattr(error, "filename", None) and error.strerror
    return " ".join((f"{error.filename}: {error.strerror}." if from_system else str(error)).split())


def discard_output():
    """Points stdout at nothing, so that Python's last flush does not raise again."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def escape_unprintable_output():
    """Makes print() escape characters that the terminal's encoding cannot show, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # A notebook's streams show every character.
            stream.reconfigure(errors="backslashreplace")


def path(text):
    """Type of a command-line option that names a file or folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("must be a path, but it is empty or holds a null character.")
    return Path(text)


def whole_number(lowest, highest):
    """Returns the type of a command-line option for whole numbers within a range."""

    def parse(text):
        if not text.isdecimal() or not lowest <= int(text[:20]) <= highest:
            rule = f"must be a whole number from {lowest} to {highest}"
            raise argparse.ArgumentTypeError(f"{rule}, but it is {text[:40]}.")
        return int(text)

    return parse
