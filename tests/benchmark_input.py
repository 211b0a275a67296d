"""Times what feeds the training: parsing the CSV, and augmenting the faces, each beside what tutorials do.

    python tests/benchmark_input.py                  needs data/fer2013.csv; about two minutes on two cores

Prints a table and writes figures/benchmark_input.json.
"""

import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import networks
import recipe
import train
import utils

FACES = 1280  # Trained on in each measurement of the augmentation: 10 batches.
ROUNDS = 3  # In each the ways take turns; the tables have the medians.


class Steps(keras.callbacks.Callback):
    """Notes when each training step ends."""

    def on_train_begin(self, logs=None):
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())

    def images_per_s(self):
        """Returns the rate from the end of the first step to that of the last, so without start and end of an epoch."""
        return 128 * (len(self.times) - 1) / (self.times[-1] - self.times[0])


def seconds(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def parse_like_a_tutorial():
    """Splits every row and converts number by number."""
    with open(utils.DEFAULT_DATA, encoding="ascii") as file:
        next(file)
        pixels = [[int(pixel) for pixel in line.split(",")[1].split()] for line in file]
    return np.array(pixels, np.uint8)


def measure_loading():
    """Returns the seconds of a first load, a cached one, and the tutorial's."""
    cache = utils.DEFAULT_DATA.with_name(utils.DEFAULT_DATA.name + ".cache.npz")
    utils.DEFAULT_DATA.read_bytes()  # So that no measurement pays for the disk.

    def load():
        utils.load_fer2013(utils.DEFAULT_DATA, "train", 7)

    rounds = []
    for _ in range(ROUNDS):
        cache.unlink(missing_ok=True)
        rounds.append((seconds(load), seconds(load), seconds(parse_like_a_tutorial)))
    medians = np.median(rounds, axis=0).round(2).tolist()
    result = dict(zip(("first_load_s", "cached_load_s", "tutorial_s"), medians, strict=True))
    return {"file_mb": round(utils.DEFAULT_DATA.stat().st_size / 1e6)} | result


def keras_layers():
    """Returns the augmentation of the small network made of Keras's own layers."""
    numbers = recipe.NETWORKS["small"]
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(numbers["MAX_ROTATION"] / 360, fill_mode="nearest"),
            layers.RandomTranslation(recipe.MAX_SHIFT, recipe.MAX_SHIFT, fill_mode="nearest"),
            layers.RandomZoom(numbers["MAX_SCALE"], fill_mode="nearest"),
            layers.RandomContrast(recipe.MAX_CONTRAST, value_range=(0, 255)),
            layers.RandomErasing(numbers["ERASING_PROBABILITY"], value_range=(0, 255)),
        ]
    )


def ways(faces, targets):
    """Returns name -> (model, data): no augmentation, Keras's layers in tf.data, and train.py's in the model."""
    plain = train.ShuffledFaces(faces, targets, 128, seed=0, epoch=0)
    in_order = tf.data.Dataset.from_tensor_slices((faces, targets)).batch(128, drop_remainder=True)
    augment = keras_layers()
    with_layers = in_order.map(lambda x, y: (augment(x, training=True), y), tf.data.AUTOTUNE)
    return {
        "none": (networks.build_model(5), plain),
        "keras_layers": (networks.build_model(5), with_layers.prefetch(tf.data.AUTOTUNE)),
        "train.py": (networks.AugmentedModel(networks.build_model(5)), plain),
    }


def measure_augmentation():
    """Returns the images per second of training with each way of augmenting."""
    faces, labels = utils.load_fer2013(utils.DEFAULT_DATA, "train", 5, limit=FACES)
    targets = keras.utils.to_categorical(labels, 5)
    keras.config.set_dtype_policy("mixed_bfloat16" if train.multiplies_bfloat16() else "float32")
    compared = ways(faces, targets)
    for model, data in compared.values():
        train.compile_model(model, 1000)
        model.fit(data, shuffle=False, verbose=0)  # Compiles.
    rates, steps = {name: [] for name in compared}, Steps()
    for _ in range(ROUNDS):
        for name, (model, data) in compared.items():
            model.fit(data, shuffle=False, verbose=0, callbacks=[steps])
            rates[name].append(steps.images_per_s())
    return {name: round(float(np.median(rate))) for name, rate in rates.items()}


def main():
    result = {"date": datetime.date.today().isoformat(), "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    result |= {"loading": measure_loading(), "training_images_per_s": measure_augmentation()}
    print(json.dumps(result, indent=2))
    (ROOT / "figures").mkdir(exist_ok=True)
    (ROOT / "figures" / "benchmark_input.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
