"""Every picture that a script draws, from ready numbers; the only importer of Matplotlib and seaborn.

Each function draws one picture into a file and closes it. Classes keep their order and the colours of `utils`.
"""

import warnings

import matplotlib

matplotlib.use("Agg")  # Draws into files, with or without a display.

import matplotlib.pyplot as plt

import utils


def save(figure, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # A file's name in letters that the font lacks.
        figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def timeline(curves, classes, path):
    """Draws the probabilities of each track over time, stacked.

    Args:
        curves: list of (name, seconds (K,), probabilities (K, C)), at most six.
        classes: C names.
        path: of the picture.
    """
    count = len(curves)
    figure, axes = plt.subplots(count, figsize=(8, 1.2 + 1.3 * count), sharex=True, squeeze=False, layout="constrained")
    for ax, (name, seconds, probabilities) in zip(axes[:, 0], curves, strict=True):
        ax.stackplot(seconds, probabilities.T, labels=classes, colors=[utils.rgb(emotion) for emotion in classes])
        title = name.replace("$", r"\$")  # Between two dollar signs Matplotlib reads mathematics.
        ax.set(ylim=(0, 1), yticks=(0, 0.5, 1), ylabel="Probability", xmargin=0.01)
        ax.set_title(title, loc="left", fontsize="medium")
    legend = axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper center", ncols=len(classes), frameon=False, handlelength=1)
    axes[-1, 0].set_xlabel("Time (s)")
    save(figure, path)
