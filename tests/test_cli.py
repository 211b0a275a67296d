"""A script ends in one line and the right status, whatever stops it.

python -m pytest tests/test_cli.py
"""

import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import cli

# A script whose work, and what comes before it, are filled in.
SCRIPT = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import cli
{{before}}
def work():
    {{work}}
sys.exit(cli.run_script("script.py", work))
"""


def start(before="pass", work="pass", **options):
    command = [sys.executable, "-c", SCRIPT.format(before=before, work=work)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, **{"stdout": subprocess.PIPE} | options)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")
@pytest.mark.parametrize("number", cli.SIGNALS)
def test_signal_is_one_line_and_status_130(number):
    process = start(work="print('begun', flush=True); time.sleep(20)")
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (130, "script.py: stopped.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no nohup")
def test_ignored_signal_stays_ignored():
    options = {"stdin": subprocess.PIPE, "preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = start(work="print('begun', flush=True); input()", **options)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    process.communicate("go on\n", timeout=10)
    assert process.returncode == 0


@pytest.mark.parametrize("error", ["ValueError('a\\nb')", "FileNotFoundError('a b')"])
def test_mistake_is_one_line_and_status_2(error):
    process = start(work=f"raise {error}")
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (2, "script.py: a b\n")


def test_system_error_names_file_and_reason():
    process = start(work="open('none/x')")
    _, stderr = process.communicate()
    problem = "none/x: No such file or directory. Check the path, or choose another."
    assert (process.returncode, stderr) == (2, f"script.py: {problem}\n")


def test_failed_renaming_names_the_file_that_was_asked_for():
    process = start(work="__import__('os').replace('none/.new-x', 'none/x')")
    _, stderr = process.communicate()
    assert stderr.startswith("script.py: none/x: No such file or directory.")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_too_little_memory_is_one_line():
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (300_000_000,) * 2)"
    process = start(limit, "bytearray(1_000_000_000)")
    _, stderr = process.communicate()
    assert (process.returncode, stderr.count("\n")) == (2, 1) and "not enough memory" in stderr


def test_bug_is_not_hidden():
    process = start(work="raise ZeroDivisionError")
    _, stderr = process.communicate()
    assert process.returncode == 1 and "Traceback" in stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX pipe")
def test_closed_pipe_is_quiet():
    process = start(work="[print('x' * 1000) for _ in range(1000)]")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_full_disk_on_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        process = start(work="print('x')", stdout=full)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (2, "script.py: No space left on device. Free some space.\n")


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("10", 10)])
def test_whole_number_accepts_its_range(text, value):
    assert cli.whole_number(1, 10)(text) == value


@pytest.mark.parametrize("text", ["0", "11", "-1", "1.5", "x", "", "9" * 5000])
def test_whole_number_refuses_the_rest(text):
    with pytest.raises(cli.argparse.ArgumentTypeError, match="whole number from 1 to 10"):
        cli.whole_number(1, 10)(text)


def test_path_refuses_nothing():
    with pytest.raises(cli.argparse.ArgumentTypeError, match="empty"):
        cli.path("")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")
def test_signal_while_python_ends_changes_nothing():
    process = start("import atexit; atexit.register(lambda: (print('ending', flush=True), time.sleep(0.5)))")
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (0, "")


def test_ctrl_c_a_kill_and_a_closed_terminal_are_handled():
    assert {number.name for number in cli.SIGNALS} >= {"SIGINT", "SIGTERM"}
    assert sys.platform == "win32" or signal.SIGHUP in cli.SIGNALS


def test_missing_package_is_one_line():
    finished = start(before="cli.check_installed('script.py', 'requirements.txt', 'sys', 'not_there')")
    command = f"{sys.executable} -m pip install -r requirements.txt"
    assert finished.communicate(timeout=60) == (
        "", f"script.py: not_there is not installed for this Python. Install it: {command}\n"
    )  # fmt: skip
    assert finished.returncode == 2


@pytest.mark.parametrize("script", ["webcam_demo.py", "train.py", "evaluate.py"])
def test_python_without_the_packages_is_told_how_to_install_them(script):
    """The system's Python has none of them."""
    finished = subprocess.run([sys.executable, "-ES", ROOT / script], capture_output=True, text=True)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1
    assert re.fullmatch(rf"{script}: \w+ is not installed .* -m pip install -r requirements.*txt\n", finished.stderr)


def test_new_file_that_cannot_replace_the_old_one_is_kept_and_named(tmp_path):
    path = tmp_path / "video.mp4"
    path.mkdir()  # Stands in for a file that a player on Windows has open.
    with pytest.raises(OSError) as caught, cli.replaced(path) as temporary:
        temporary.write_text("new")
    message = cli.explain(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith(f" The content is still in {temporary}.")
    assert temporary.read_text() == "new"


def test_renaming_is_tried_again_while_another_program_holds_the_file(tmp_path, monkeypatch):
    attempts, path = iter([PermissionError, PermissionError, None]), tmp_path / "new"

    def replace(path, target):
        if error := next(attempts):
            raise error
        return target

    monkeypatch.setattr(cli, "RENAME_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(cli.Path, "replace", replace)
    assert cli.rename(path, tmp_path / "old") == tmp_path / "old"
    assert next(attempts, "none left") == "none left"


def test_replaced_file_is_complete_or_unchanged(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk"), cli.replaced(path) as temporary:
        temporary.write_text("half")
        raise OSError("The disk is full.")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with cli.replaced(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
