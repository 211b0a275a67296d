"""The import rules of the files, read from their source.

python -m pytest tests/test_imports.py
"""

import ast

from conftest import ROOT

SCRIPTS = {"train", "evaluate", "webcam_demo", "emotion_log"}
# Which files may import a package, besides tests/. Every file may import the others.
ALLOWED = {
    "keras": {"train", "cnn", "checkpoint"},
    "tensorflow": {"train", "cnn", "checkpoint"},
    "matplotlib": {"plots", "make_demo"},  # make_demo.py takes a portrait from it.
    "seaborn": {"plots"},
    "pandas": {"fer2013", "train", "evaluate", "emotion_log"},
    "PIL": {"utils", "video"},
}
MODULES = {path.stem: path for path in ROOT.glob("*.py")}
OTHERS = {path.stem: path for folder in ("data", "models", "figures") for path in (ROOT / folder).rglob("*.py")}


def list_imports(path):
    """Returns the first names of all modules that a file imports, set of str."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def test_utils_and_cli_import_no_file_of_the_project():
    for name in ("utils", "cli"):
        assert not list_imports(MODULES[name]) & set(MODULES)


def test_the_data_set_is_read_by_train_and_evaluate_only():
    assert list_imports(MODULES["fer2013"]) & set(MODULES) == {"utils"}
    assert {name for name, path in MODULES.items() if "fer2013" in list_imports(path)} == {"train", "evaluate"}


def test_no_script_imports_a_script():
    for name in SCRIPTS - {"webcam_demo"}:
        assert not list_imports(MODULES[name]) & SCRIPTS
    assert list_imports(MODULES["webcam_demo"]) & SCRIPTS == {"emotion_log"}  # Its log; a script for a written one.


def test_data_models_and_figures_import_no_file_of_the_project():
    for path in OTHERS.values():
        assert not list_imports(path) & set(MODULES)


def test_packages_are_imported_where_they_belong():
    for package, allowed in ALLOWED.items():
        found = {name for name, path in {**MODULES, **OTHERS}.items() if package in list_imports(path)}
        assert found <= allowed


def test_nothing_outside_the_tests_touches_the_search_path():
    for path in {**MODULES, **OTHERS}.values():
        assert "sys.path" not in path.read_text(encoding="utf-8")
