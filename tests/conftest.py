"""Shared by several test files: drawn data, a model trained on it, a photograph and a video of it, and the scripts."""

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import matplotlib.cbook
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

# Under nohup or in the background, the tests and the processes that they start would ignore the signals that they need.
with contextlib.suppress(AttributeError):  # Windows has no SIGHUP.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import cli  # noqa: E402 - it is found from here on.


@pytest.fixture(scope="session")
def run_script():
    """Runs a script as a user does, from another folder; returns the finished process."""

    def run(script, *arguments, timeout=400, **options):
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)

    return run


@pytest.fixture(scope="session")
def sample_csv(tmp_path_factory, run_script):
    """The drawn data set, as `data/make_sample.py` writes it."""
    path = tmp_path_factory.mktemp("sample") / "sample.csv"
    finished = run_script("data/make_sample.py", "--output", path)
    assert finished.returncode == 0, finished.stderr
    return path


@pytest.fixture(scope="session")
def sample_votes(sample_csv):
    """The votes of the drawn data set."""
    return sample_csv.with_name("sample_votes.csv")


# A network that learns the drawn faces in seconds, for tests of everything but the network.
TINY_STAGES = ((16, 1, 0), (32, 1, 0), (64, 1, 0))
TINY_PART_FACES = 100  # Searching for parts of 800 faces takes longer than the training.
TRAIN_TINY = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import cnn
import train
cnn.STAGES, train.PART_FACES = {TINY_STAGES}, {TINY_PART_FACES}
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory, sample_csv, sample_votes):
    """A model folder with two heads trained on the drawn faces, and what the training printed.

    The processes of pytest-xdist share it: the first one that needs it trains.
    """
    base = tmp_path_factory.getbasetemp()
    place = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, printed = place / "models" / "drawn", place / "drawn.txt"
    arguments = ["--data", sample_csv, "--votes", sample_votes, "--epochs", 10, "--batch-size", 32]
    command = [sys.executable, "-c", TRAIN_TINY, *map(str, arguments), "--output-dir", str(folder)]
    with open(place / "drawn.lock", "wb") as file:
        while not cli.lock(file):
            time.sleep(0.1)
        if not printed.exists():
            finished = subprocess.run(command, capture_output=True, text=True, timeout=400)
            assert finished.returncode == 0, finished.stderr
            printed.write_text(finished.stdout, encoding="utf-8")
    return folder, printed.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def portrait_path():
    """A photograph with one face: Grace Hopper, public domain, from Matplotlib's sample data."""
    return Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


@pytest.fixture(scope="session")
def portrait(portrait_path):
    """The photograph as a frame of 384x450 pixels."""
    return cv2.resize(cv2.imread(str(portrait_path)), (384, 450), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="session")
def clip(tmp_path_factory, portrait):
    """A video of 30 frames at 10 frames a second: the portrait in the first 20, nothing in the last 10."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, portrait.shape[1::-1])
    for number in range(30):
        writer.write(portrait if number < 20 else np.full_like(portrait, 90))
    writer.release()
    return path


@pytest.fixture
def serve():
    """Starts a web server on loopback for a request handler; returns its address."""
    servers = []

    def start(handler):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
