"""The CNN and its augmentation, with their constants. Used by train.py."""

import keras
import numpy as np
from keras import layers, ops

import utils

# Constants ------------------------------------------------------------------------------------------------------------

# Per stage: filters, convolutions, and residual pairs of convolutions. Max pooling halves the image between stages.
STAGES = ((16, 2, 0), (32, 1, 1), (80, 1, 2), (160, 1, 1))
MIN_VARIANCE = 4.0  # Squared gray levels: a blank image stays blank.
STAGE_DROPOUT = 0.05  # Share of the channels, after every stage but the first.
HEAD_DROPOUT = 0.2  # Share of the features, before the dense layers.
BATCH_NORM_MOMENTUM = 0.9  # Keras's 0.99 lags: in a short run, the statistics would still be those of the first steps.

# Augmentation: random values for every face and epoch.
MAX_ROTATION = 12  # Degrees.
MAX_SCALE = 0.15  # Share of the face's size.
MAX_SHIFT = 0.1  # Share of the crop's size.
ERASING_PROBABILITY = 0.3
ERASING_SIDE = (0.15, 0.4)  # Share of the crop's size.
# Appearance, for cameras unlike those of FER2013. Brightness and contrast need none, because they are normalized.
APPEARANCE_PROBABILITY = 0.3
SHARPNESS = (-0.5, 1.0)  # Share of a Gaussian blur of 1 pixel that is mixed in. Below 0, the face is sharpened.
GAMMA = (0.67, 1.5)
MAX_NOISE = 6  # Gray levels, standard deviation.

# Network --------------------------------------------------------------------------------------------------------------


def normalize(faces):
    """Normalizes the gray levels of each face to mean 0 and variance 1, so that dim and bright faces look alike."""
    # In float32 even with mixed precision, because a dim face has few gray levels.
    return layers.LayerNormalization(
        axis=(1, 2, 3), epsilon=MIN_VARIANCE, center=False, scale=False, dtype="float32", name="normalization"
    )(faces)


def conv_block(x, filters):
    """Convolution, batch normalization, ReLU."""
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM)(x)
    return layers.ReLU()(x)


def build_model(num_classes, heads=utils.HEADS, image_size=utils.IMAGE_SIZE):
    """Builds the CNN.

    Args:
        num_classes: width of each output.
        heads: names of the outputs, which share all layers except for the last.
        image_size: width and height of the input in pixels; None, which only training needs, accepts any size.

    Returns:
        model: `keras.Model` from faces (N, size, size, 1), 0..255, to a dict of logits (N, num_classes) per head.
    """
    faces = keras.Input((image_size, image_size, 1), name="faces")
    x = normalize(faces)
    for stage, (filters, convolutions, pairs) in enumerate(STAGES):
        if stage > 0:
            x = layers.MaxPooling2D()(x)  # 48 -> 24 -> 12 -> 6
        for _ in range(convolutions):
            x = conv_block(x, filters)
        for _ in range(pairs):
            x = layers.Add()([x, conv_block(conv_block(x, filters), filters)])
        if stage > 0:
            x = layers.SpatialDropout2D(STAGE_DROPOUT)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(HEAD_DROPOUT)(x)
    # In float32 even with mixed precision: bfloat16 rounds logits to two or three digits.
    outputs = {head: layers.Dense(num_classes, dtype="float32", name=head)(x) for head in heads}
    return keras.Model(faces, outputs, name="cnn")


def shared_features(network):
    """Returns the features that the heads of a network share, a Keras tensor (N, F)."""
    return network.get_layer(network.output_names[0]).input


def add_face_output(network, weights, bias):
    """Returns a network with another output, `face`: the logit, float32 (N, 1), that a window holds a face.

    Args:
        network: from `build_model`.
        weights, bias: float (F, 1) and (1,), for the F features from `shared_features`.
    """
    face = layers.Dense(1, dtype="float32", name="face")
    extended = keras.Model(network.input, {**network.output, "face": face(shared_features(network))}, name="cnn")
    face.set_weights([weights, bias])
    return extended


def count_macs(model):
    """Returns the multiply-adds for one face in convolutions and dense layers; other layers add less than 2%."""
    macs = 0
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            _, height, width, _ = layer.output.shape
            macs += height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, layers.Dense):
            macs += int(np.prod(layer.kernel.shape))
    return macs


def describe_layers(model):
    """Returns the layers for the architecture figure.

    Returns:
        list of dict: `name`, `kind` (Keras class), `text`, `shape` (of the output, without the batch), `sources` (names
            of its input layers).
    """
    described = []
    for layer in model.layers:
        kind, config = type(layer).__name__, layer.get_config()
        text = f"{kind} {'×'.join(map(str, config['kernel_size']))}" if "kernel_size" in config else kind
        text += f" {config['rate']:.0%}" if "rate" in config else ""
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        sources = [tensor._keras_history.operation.name for tensor in inputs if kind != "InputLayer"]
        shape = list(layer.output.shape[1:])
        described.append({"name": layer.name, "kind": kind, "text": text, "shape": shape, "sources": sources})
    return described


# Augmentation ---------------------------------------------------------------------------------------------------------


class Augmentation(layers.Layer):
    """Randomly changes position, appearance and a part of each face in training; does nothing in inference.

    Attributes:
        size: width and height in pixels of the crop of each face. The crop is centered on the face, then shifted.
    """

    def __init__(self):
        super().__init__(dtype="float32")  # Even with mixed precision: coordinates need more than 8 bits.
        self.size = utils.IMAGE_SIZE
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, faces, training=False):
        return self.erase(self.change_appearance(self.warp(faces))) if training else faces

    def uniform(self, low, high, *shape):
        return keras.random.uniform(shape, low, high, seed=self.seed_generator)

    def warp(self, faces):
        """Flips, rotates, scales, shifts and crops. The matrices map pixels of the crop to pixels of the face."""
        count = ops.shape(faces)[0]
        flip = ops.sign(self.uniform(-1, 1, count))
        angle = np.deg2rad(MAX_ROTATION) * self.uniform(-1, 1, count)
        scale = 1 / (1 + self.uniform(-MAX_SCALE, MAX_SCALE, count))
        cos, sin = scale * ops.cos(angle), scale * ops.sin(angle)
        # The center of the face lands in the center of the crop, moved by the shift.
        x, y = ((self.size - 1) / 2 + self.size * self.uniform(-MAX_SHIFT, MAX_SHIFT, count) for _ in "xy")
        center, zero = (utils.IMAGE_SIZE - 1) / 2, ops.zeros_like(x)
        to_x = (flip * cos, -flip * sin, center - flip * (cos * x - sin * y))
        to_y = (sin, cos, center - sin * x - cos * y)
        matrices = ops.stack([*to_x, *to_y, zero, zero], axis=1)
        warped = ops.image.affine_transform(
            faces, matrices, interpolation="bilinear", fill_mode="nearest", data_format="channels_last"
        )
        return warped[:, : self.size, : self.size]

    def change_appearance(self, faces):
        """Blurs or sharpens, changes gamma, and adds noise to some faces."""
        shape = (ops.shape(faces)[0], 1, 1, 1)
        changed = faces + self.uniform(*SHARPNESS, *shape) * (blur(faces) - faces)
        gamma = ops.exp(self.uniform(*np.log(GAMMA), *shape))
        changed = 255 * ops.power(ops.clip(changed, 0, 255) / 255, gamma)
        noise = keras.random.normal(ops.shape(faces), seed=self.seed_generator)
        changed = ops.clip(changed + self.uniform(0, MAX_NOISE, *shape) * noise, 0, 255)
        return ops.where(self.uniform(0, 1, *shape) < APPEARANCE_PROBABILITY, changed, faces)

    def erase(self, faces):
        """Fills a rectangle of some faces with noise (Zhong et al., 2020)."""
        count = ops.shape(faces)[0]
        width, height = (self.uniform(*ERASING_SIDE, count, 1, 1, 1) for _ in "xy")
        left, top = ((1 - side) * self.uniform(0, 1, count, 1, 1, 1) for side in (width, height))
        pixel = (ops.arange(self.size, dtype="float32") + 0.5) / self.size
        x, y = ops.reshape(pixel, (1, 1, -1, 1)), ops.reshape(pixel, (1, -1, 1, 1))
        inside = (ops.abs(x - left - width / 2) < width / 2) & (ops.abs(y - top - height / 2) < height / 2)
        chosen = self.uniform(0, 1, count, 1, 1, 1) < ERASING_PROBABILITY
        return ops.where(inside & chosen, self.uniform(0, 255, *ops.shape(faces)), faces)


def blur(faces):
    """Convolves faces, float32 (N, H, W, 1), with a binomial kernel of 5x5 pixels."""
    row = np.array([1, 4, 6, 4, 1], np.float32) / 16
    kernel = np.outer(row, row)[:, :, np.newaxis, np.newaxis]
    padded = ops.pad(faces, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    return ops.conv(padded, kernel, padding="valid", data_format="channels_last")


class AugmentedModel(keras.Model):
    """Augmentation followed by the network from `build_model`. Training uses both; only the network is saved."""

    def __init__(self, network):
        faces = keras.Input((utils.IMAGE_SIZE, utils.IMAGE_SIZE, 1))
        augmentation = Augmentation()
        super().__init__(faces, network(augmentation(faces)))
        self.augmentation, self.network = augmentation, network

    def set_size(self, size):
        """Sets the width of the crops in pixels for the next `fit`."""
        self.augmentation.size = size
        self.train_function = None  # Compiled for the old width; `fit` compiles it again.

    def seed_epoch(self, seed, epoch):
        """Seeds dropout and augmentation of an epoch, so that a resumed run repeats them."""
        for number, layer in enumerate([self.augmentation, *self.network.layers]):
            if hasattr(layer, "seed_generator"):
                layer.seed_generator.state.assign([(1000 * seed + number) % 2**32, 1_000_000 * epoch])
