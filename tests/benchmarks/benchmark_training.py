"""Compares train.py with the recipe of most tutorials, one after the other on the same machine.

    python tests/benchmarks/benchmark_training.py   needs data/fer2013.csv; 80 minutes with nothing else running
    python tests/benchmarks/benchmark_training.py --minutes 4   a quick look

The tutorial's recipe is three blocks of plain convolutions, a flattened dense layer of 1024, Adam at a constant rate of
1e-4, batches of 64, and Keras's rotation, shift and flip. It runs for the given time. train.py learns from the labels
alone and runs for about a quarter of it. Writes figures/benchmark_training.json and .png.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import keras
import matplotlib.pyplot as plt
import pandas as pd
import tensorflow as tf
from keras import layers

import fer2013
import plots
import train

MINUTES_PER_EPOCH = 5  # The tutorial's minutes per epoch of train.py: 60 give 12 epochs, which take about 16 minutes.


class Clock(keras.callbacks.Callback):
    """Records minutes and validation accuracy of every epoch, and stops when the time is over."""

    def __init__(self, minutes):
        super().__init__()
        self.minutes, self.curve, self.started = minutes, [], time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.curve.append({"minutes": (time.perf_counter() - self.started) / 60, "val_accuracy": logs["val_accuracy"]})
        self.model.stop_training = self.curve[-1]["minutes"] >= self.minutes


def build_tutorial_model(num_classes):
    model = keras.Sequential([keras.Input((48, 48, 1)), layers.Rescaling(1 / 255)])
    for block, filters in enumerate((32, 64, 128)):
        for _ in range(2):
            model.add(layers.Conv2D(filters, 3, activation="relu", padding="same" if block == 0 else "valid"))
        model.add(layers.MaxPooling2D())
        model.add(layers.Dropout(0.25))
    for layer in (layers.Flatten(), layers.Dense(1024, activation="relu"), layers.Dropout(0.5)):
        model.add(layer)
    model.add(layers.Dense(num_classes, activation="softmax"))
    model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def run_tutorial(data, minutes):
    """Returns the curve of the tutorial's recipe, list of dict."""
    (faces, labels), validation = map(fer2013.read(data).select, ("train", "val"))
    augment = keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(10 / 360, fill_mode="nearest"),
            layers.RandomTranslation(0.1, 0.1, fill_mode="nearest"),
        ]
    )
    dataset = tf.data.Dataset.from_tensor_slices((faces, labels)).shuffle(len(faces)).batch(64)
    dataset = dataset.map(lambda x, y: (augment(x, training=True), y), os.cpu_count()).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False  # It keeps some epochs from ending for up to half a minute.
    dataset = dataset.with_options(options)
    clock = Clock(minutes)
    build_tutorial_model(5).fit(dataset, validation_data=validation, epochs=10_000, callbacks=[clock], verbose=2)
    return clock.curve


def run_ours(data, epochs):
    """Returns the curve of train.py for a run of so many epochs, list of dict."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model"
        train.train(output, data, epochs=epochs)
        history = pd.read_csv(output / "history.csv")
    return [
        {"minutes": seconds / 60, "val_accuracy": accuracy}
        for seconds, accuracy in zip(history["seconds"].cumsum(), history["val_labels_accuracy"], strict=True)
    ]


def draw_race(curves, path):
    """Draws validation accuracy over time; `curves` has a list of `minutes` and `val_accuracy` for each name."""
    figure, ax = plt.subplots(figsize=(7, 4))
    for (name, curve), color in zip(curves.items(), plots.SERIES_COLORS, strict=False):
        minutes, accuracy = ([point[key] for point in curve] for key in ("minutes", "val_accuracy"))
        best = max(accuracy)
        ax.plot(minutes, accuracy, color=color, label=f"{name}: best {best:.1%}")
        ax.plot(minutes[accuracy.index(best)], best, "o", color=color)
    ax.set(xlabel="Time (minutes)", ylabel="Accuracy", title="PublicTest, five classes, while training")
    ax.legend(loc="lower right")
    plots.save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="for the tutorial's recipe (default: 60)")
    minutes = parser.parse_args().minutes
    epochs = max(1, round(minutes / MINUTES_PER_EPOCH))
    curves = {
        "Tutorial's recipe": run_tutorial(fer2013.DEFAULT_DATA, minutes),
        f"train.py --epochs {epochs}": run_ours(fer2013.DEFAULT_DATA, epochs),
    }
    result = {"date": datetime.date.today().isoformat(), "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    result |= {"split": "PublicTest", "classes": 5, "curves": curves}
    for name, curve in curves.items():
        print(f"{name}: {max(point['val_accuracy'] for point in curve):.4f} in {curve[-1]['minutes']:.0f} minutes")
    (ROOT / "figures" / "benchmark_training.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw_race(curves, ROOT / "figures" / "benchmark_training.png")


if __name__ == "__main__":
    main()
