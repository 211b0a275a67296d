"""The library as `pip install .` installs it, used from another folder.

python -m pytest tests/test_package.py
"""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# Beside a user's own utils.py, which must not be taken for the project's.
PROGRAM = """
import cv2, facial_emotions, utils
assert utils.OWN
for face in facial_emotions.read_emotions(cv2.imread("photo.jpg")):
    print(face.label in face.probabilities, facial_emotions.__file__)
"""
PUBLIC = {"load_face_detector", "detect_faces", "crop_faces", "load_emotion_model", "EmotionModel"}
PUBLIC |= {"choose_labels", "annotate_frame", "read_emotions", "Face"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of packages with the built wheel in it, and nothing else."""
    folder = tmp_path_factory.mktemp("package")
    # From a copy, because building may leave files behind.
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements-demo.txt", "utils.py"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "models" / "emotions-5", folder / "models" / "emotions-5")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder)], check=True, capture_output=True, timeout=300)
    return folder / "site"


def test_installed_library_reads_a_photograph_beside_a_users_utils(site, tmp_path, portrait_path):
    shutil.copy(portrait_path, tmp_path / "photo.jpg")
    (tmp_path / "utils.py").write_text("OWN = True")
    (tmp_path / "program.py").write_text(f"import sys; sys.path.append({str(site)!r})\n{PROGRAM}")
    command = [sys.executable, "program.py"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"True {site / 'facial_emotions' / '__init__.py'}\n"


def test_package_holds_the_public_names_and_one_model(site):
    program = f"import sys; sys.path.insert(0, {str(site)!r}); import facial_emotions as f; print(*dir(f))"
    names = subprocess.check_output([sys.executable, "-c", program], cwd=site, text=True).split()
    assert set(names) >= PUBLIC
    files = {path.relative_to(site).as_posix() for path in (site / "facial_emotions").rglob("*.*")}
    models = {f"facial_emotions/models/emotions-5/model.{suffix}" for suffix in ("json", "tflite")}
    assert {file for file in files if "__pycache__" not in file} == {"facial_emotions/__init__.py", *models}


def test_package_needs_what_the_demo_needs(site):
    (metadata,) = site.glob("facial_emotions-*.dist-info/METADATA")
    lines = metadata.read_text(encoding="utf-8").splitlines()
    required = {re.match("Requires-Dist: ([a-z-]+)", line)[1] for line in lines if line.startswith("Requires-Dist")}
    listed = (ROOT / "requirements-demo.txt").read_text(encoding="utf-8").splitlines()
    assert required == {re.match("[a-z-]+", line)[0] for line in listed if line[0] != "#"}
