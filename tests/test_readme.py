"""The Python programs and commands of the README, as they stand there.

python -m pytest tests/test_readme.py
"""

import csv
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
# What the Dask program prints for a photograph: its path as Python shows it, and a label.
LABELED_PHOTO = re.compile(re.escape(repr(os.path.join("photos", ""))[1:-1]) + r"([abc])\.jpg', '[A-Z]")


@pytest.fixture
def photos(tmp_path, portrait_path):
    """A folder with `photo.jpg`, and `photos/` with three copies of it."""
    shutil.copy(portrait_path, tmp_path / "photo.jpg")
    (tmp_path / "photos").mkdir()
    for name in "abc":
        shutil.copy(portrait_path, tmp_path / "photos" / f"{name}.jpg")
    return tmp_path


def find_program(word):
    """Returns the Python program of the README that holds a word."""
    (program,) = (text for text in re.findall("```python\n(.*?)```", README, re.DOTALL) if word in text)
    return program


def run_program(program, folder):
    (folder / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "program.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_library_names_the_emotion_of_a_photograph(photos):
    finished = run_program(find_program("face.probabilities"), photos)
    assert finished.returncode == 0, finished.stderr
    assert re.fullmatch(r"\((\d+, ){3}\d+\) [A-Z][a-z]+ 0\.\d+ \{'Angry': .*\}\n", finished.stdout)


@pytest.mark.parametrize("scheduler", ["processes", "threads"])
def test_dask_labels_a_folder_of_photographs(photos, scheduler):
    program = find_program("dask.bag").replace("processes", scheduler)
    finished = run_program(program, photos)
    assert finished.returncode == 0, finished.stderr
    assert len(set(LABELED_PHOTO.findall(finished.stdout))) == 3


def test_dask_labels_a_folder_on_a_cluster(photos):
    start = "    import distributed; distributed.Client(n_workers=2, threads_per_worker=2, dashboard_address=None)\n"
    program = (
        find_program("dask.bag").replace('scheduler="processes"', "").replace("    paths =", f"{start}    paths =")
    )
    finished = run_program(program, photos)
    assert finished.returncode == 0, finished.stderr
    assert len(set(LABELED_PHOTO.findall(finished.stdout))) == 3


@pytest.mark.skipif(not shutil.which("xargs"), reason="needs xargs")
def test_one_process_per_file_writes_a_log_each(tmp_path, clip):
    (tmp_path / "films").mkdir()
    names = ("a.mp4", "two words.mp4", "it's.mp4")
    for name in names:
        shutil.copy(clip, tmp_path / "films" / name)
    command = next(line for line in README.splitlines() if "xargs" in line)
    command = command.replace(".venv/bin/python webcam_demo.py", f"{sys.executable} {ROOT}/webcam_demo.py")
    finished = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    for name in names:
        with open(tmp_path / "logs" / f"{name}.csv", newline="", encoding="utf-8-sig") as file:
            assert {int(row["frame"]) for row in csv.DictReader(file)} == set(range(30))
