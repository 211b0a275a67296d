"""Pictures open, are not blank, are closed, and show their data.

python -m pytest tests/test_plots.py
"""

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import plots
import utils

CLASSES = tuple(utils.EMOTIONS[i] for i in utils.CLASS_SETS[5])


@pytest.fixture
def figures(monkeypatch):
    """Collects each Matplotlib figure when it is saved."""
    plt.close("all")  # Figures that a test of errors left open.
    saved, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (saved.append(figure), save(figure, path)))
    return saved


def check_picture(path, width=400):
    """Checks that a picture can be read, is wide enough for the README, and is neither blank nor full."""
    picture = cv2.imread(str(path))
    assert picture.shape[1] > width
    assert 0.005 < (picture < 250).any(axis=-1).mean() < 0.98
    assert not plt.get_fignums()
    return picture


def check_axes(figure):
    """Checks that every axis with numbers has a name."""
    for ax in figure.axes:
        if ax.axison:
            assert ax.get_xlabel() or not any(label.get_text() for label in ax.get_xticklabels())
            assert ax.get_ylabel() or ax is not figure.axes[0]


def test_confusion_matrix_shows_shares_of_rows_and_counts(tmp_path, figures):
    """Three of four faces with label Happy are predicted as Happy: 75%. A class without faces has shares of 0."""
    counts = np.zeros((5, 5), int)
    counts[1, 1], counts[1, 2] = 3, 1
    plots.confusion_matrix(counts, CLASSES, "Label", "Prediction", "Title", tmp_path / "a.png")
    check_picture(tmp_path / "a.png")
    (ax,) = figures[0].axes
    texts = [text.get_text() for text in ax.texts]
    assert texts[6:8] == ["75%\n3", "25%\n1"] and texts[0] == "0%\n0"
    assert [label.get_text() for label in ax.get_xticklabels()] == list(CLASSES)
    assert ax.get_ylabel() == "Label" and ax.get_xlabel() == "Prediction (% of the row, faces)"


def test_roc_has_a_curve_per_class_in_its_color_and_the_mean(tmp_path, figures):
    """Two curves of areas 0.5 and 1 have the mean 0.75."""
    curves = {
        "Happy": (np.array([0, 1]), np.array([0, 1]), 0.5),
        "Sad": (np.array([0, 0, 1]), np.array([0, 1, 1]), 1.0),
    }
    plots.roc(curves, "Title", tmp_path / "a.png")
    check_picture(tmp_path / "a.png")
    (ax,) = figures[0].axes
    check_axes(figures[0])
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines)[:3] == ["Happy (AUC 0.500)", "Sad (AUC 1.000)", "Mean (AUC 0.750)"]
    assert lines["Happy (AUC 0.500)"].get_color() == plots.COLORS["Happy"]
    assert lines["Mean (AUC 0.750)"].get_ydata()[-1] == 1


def test_roc_without_curves_is_drawn(tmp_path):
    plots.roc({}, "Title", tmp_path / "a.png")
    check_picture(tmp_path / "a.png")


def test_calibration_leaves_out_faces_without_truth(tmp_path, figures):
    """Confidence 0.8: two of three faces are right, the fourth has no truth. The error is 0.8 - 2/3."""
    probabilities, truth = np.tile([0.8, 0.2], (4, 1)), np.array([0, 0, 1, -1])
    panels = [("First", truth, {"Before": probabilities}), ("Second", truth, {"After": probabilities})]
    plots.calibration(panels, tmp_path / "a.png")
    check_picture(tmp_path / "a.png", width=700)
    check_axes(figures[0])
    line = figures[0].axes[0].lines[1]
    assert line.get_label() == "Before: ECE 0.133"
    assert np.nanmax(line.get_xdata()) == pytest.approx(0.8) and np.nanmax(line.get_ydata()) == pytest.approx(2 / 3)
    assert sum(bar.get_height() for bar in figures[0].axes[2].patches) == 3


def test_mistakes_shows_at_most_eight_faces(tmp_path, figures):
    faces = np.random.default_rng(0).integers(0, 256, (12, 48, 48, 1), dtype=np.uint8)
    plots.mistakes(faces, [f"Face {i}" for i in range(12)], "Title", tmp_path / "a.png")
    check_picture(tmp_path / "a.png")
    shown = [ax for ax in figures[0].axes if ax.images]
    assert [ax.get_title() for ax in shown] == [f"Face {i}" for i in range(8)]
    assert np.array_equal(shown[3].images[0].get_array(), faces[3, ..., 0])


def test_mistakes_of_a_perfect_model_are_drawn_without_faces(tmp_path):
    plots.mistakes(np.zeros((0, 48, 48, 1), np.uint8), [], "Title", tmp_path / "a.png")
    assert cv2.imread(str(tmp_path / "a.png")) is not None


@pytest.mark.parametrize("quantity", ["accuracy", "loss"])
@pytest.mark.parametrize("heads", [("labels",), ("labels", "votes")])
def test_history_has_two_curves_per_head_and_the_kept_epoch(tmp_path, figures, quantity, heads):
    columns = {f"{part}{head}_{quantity}": np.linspace(0, 1, 4) for head in heads for part in ("", "val_")}
    epochs = {"epoch": np.arange(1.0, 5), "size": np.array([40.0, 40, 48, 48])} | columns
    plots.history(epochs, quantity, heads, 3, tmp_path / "a.png")
    check_picture(tmp_path / "a.png")
    check_axes(figures[0])
    (ax,) = figures[0].axes
    assert len(ax.get_legend().get_texts()) == 2 * len(heads)
    dots = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert dots == [[3.0]] * len(heads)
    assert [text.get_text() for text in ax.texts] == ["48 px "]


def test_history_of_one_epoch_without_a_kept_one(tmp_path):
    epochs = {name: np.ones(1) for name in ("epoch", "size", "labels_accuracy", "val_labels_accuracy")}
    plots.history(epochs, "accuracy", ("labels",), None, tmp_path / "a.png")
    check_picture(tmp_path / "a.png")


LAYERS = [
    dict(name="faces", kind="InputLayer", text="InputLayer", shape=[48, 48, 1], sources=[]),
    dict(name="conv", kind="Conv2D", text="Conv2D 3×3", shape=[48, 48, 8], sources=["faces"]),
    dict(name="norm", kind="BatchNormalization", text="BatchNormalization", shape=[48, 48, 8], sources=["conv"]),
    dict(name="relu", kind="ReLU", text="ReLU", shape=[48, 48, 8], sources=["norm"]),
    dict(name="add", kind="Add", text="Add", shape=[48, 48, 8], sources=["relu", "relu"]),
    dict(name="pool", kind="GlobalAveragePooling2D", text="GlobalAveragePooling2D", shape=[8], sources=["add"]),
    dict(name="labels", kind="Dense", text="Dense", shape=[5], sources=["pool"]),
    dict(name="votes", kind="Dense", text="Dense", shape=[5], sources=["pool"]),
]


def test_architecture_merges_normalization_and_names_the_heads(tmp_path, figures):
    plots.architecture(LAYERS, "Title", tmp_path / "a.png")
    check_picture(tmp_path / "a.png")
    texts = [text.get_text() for text in figures[0].axes[0].texts]
    assert texts == [
        "InputLayer", "48×48×1", "Conv2D 3×3", "batch norm, ReLU, 48×48×8", "Add", "48×48×8",
        "GlobalAveragePooling2D", "8", "Dense: labels", "5", "Dense: votes", "5",
    ]  # fmt: skip


def test_text_of_the_shipped_architecture_fits_into_its_boxes(tmp_path, figures):
    plots.architecture(utils.load_emotion_model().description["layers"], "Title", tmp_path / "a.png")
    (ax,) = figures[0].axes
    renderer = FigureCanvasAgg(figures[0]).get_renderer()
    width = ax.transData.transform((0.88, 0))[0] - ax.transData.transform((0, 0))[0]
    assert all(text.get_window_extent(renderer).width < width for text in ax.texts)


@pytest.mark.parametrize("count", [1, 6])
def test_timeline_has_a_row_per_track_in_the_colors_of_the_classes(tmp_path, figures, count):
    seconds = np.linspace(0, 5, 20)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), 20)
    curves = [(f"$file_{i}$, face 1", seconds, probabilities) for i in range(count)]
    plots.timeline(curves, CLASSES, 0, tmp_path / "a.png")
    picture = check_picture(tmp_path / "a.png", width=1000)
    assert len(figures[0].axes) == count
    for emotion in CLASSES:
        color = np.array(utils.EMOTION_COLORS[emotion][::-1])  # RGB to BGR.
        assert (picture == color).all(axis=-1).mean() > 0.01
    assert figures[0].axes[-1].get_xlabel() == "Time (seconds)" and figures[0].get_supylabel() == "Probability"
    assert figures[0].get_supxlabel() == ""


@pytest.mark.parametrize(
    ("others", "text"), [(1, "1 more face was seen for less time."), (12, "12 more faces were seen for less time.")]
)
def test_timeline_says_how_many_faces_it_leaves_out(tmp_path, figures, others, text):
    curve = ("Face 1", np.array([0.0, 1.0]), np.full((2, 5), 0.2))
    plots.timeline([curve], CLASSES, others, tmp_path / "a.png")
    check_picture(tmp_path / "a.png")
    assert figures[0].get_supxlabel() == text


def test_long_timeline_is_in_minutes_and_begins_at_0(tmp_path, figures):
    curve = ("Face 1", np.array([60.0, 600.0]), np.full((2, 5), 0.2))
    plots.timeline([curve], CLASSES, 0, tmp_path / "a.png")
    (ax,) = figures[0].axes
    assert ax.get_xlabel() == "Time (minutes)" and ax.get_xlim() == (0, 10)


def test_letters_that_the_font_lacks_are_drawn_without_a_warning(tmp_path, recwarn):
    curve = ("\u0634\U0001f600.mp4, face 1", np.array([0.0, 1.0]), np.full((2, 5), 0.2))
    plots.timeline([curve], CLASSES, 0, tmp_path / "a.png")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
