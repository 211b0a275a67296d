"""The networks, and the augmentation in front of them while they train; used by train.py."""

import keras
import numpy as np
from keras import layers, ops

import recipe
import utils


def conv_block(x, filters):
    """Convolution, batch normalisation, ReLU."""
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=recipe.BATCH_NORM_MOMENTUM)(x)
    return layers.ReLU()(x)


def build_model(num_classes, network="small", image_size=utils.IMAGE_SIZE):
    """Builds the CNN.

    Args:
        num_classes: width of the softmax output.
        network: a name in `NETWORKS`.
        image_size: width and height of the input in pixels; None takes any size, which only training needs.

    Returns:
        model: `keras.Model` from faces (N, size, size, 1), 0..255, to probabilities (N, num_classes).
    """
    numbers = recipe.NETWORKS[network]
    faces = keras.Input((image_size, image_size, 1), name="faces")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(faces)
    for stage, (filters, convolutions, pairs) in enumerate(numbers["STAGES"]):
        if stage > 0:
            x = layers.MaxPooling2D()(x)  # 48 -> 24 -> 12 -> 6
        for _ in range(convolutions):
            x = conv_block(x, filters)
        for _ in range(pairs):
            x = layers.Add()([x, conv_block(conv_block(x, filters), filters)])
        if stage > 0:
            x = layers.SpatialDropout2D(recipe.STAGE_DROPOUT)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(numbers["HEAD_DROPOUT"])(x)
    # Without a bias, because OpenCV's importer would leave it out. In float32 under mixed precision too, because a
    # softmax in bfloat16 rounds probabilities to two digits.
    dense = layers.Dense(num_classes, activation="softmax", use_bias=False, dtype="float32", name="probabilities")
    model = keras.Model(faces, dense(x), name=network)
    if numbers["MIRROR_SYMMETRIC"]:
        for weight in model.trainable_weights:
            weight.constraint = mirror_symmetric  # The optimizer applies it after every step.
        make_mirror_symmetric(model)
    return model


def make_mirror_symmetric(model):
    for weight in model.weights:
        weight.assign(mirror_symmetric(weight))


def mirror_symmetric(weight):
    """Returns the nearest weight with which a layer treats a mirror image as it treats the image.

    The second half of a layer's channels is then what the first half would be for the mirror image, from the first
    layer on, and the dense layer does not tell the halves apart: the same probabilities for both, with half of the
    numbers to learn and no operation more (a group-equivariant network: Cohen & Welling, 2016).

    Args:
        weight: (height, width, channels in, channels out) of a convolution, (channels in, classes) of the dense layer,
            (channels,) of batch normalisation.
    """
    mirrored = ops.flip(weight, axis=1) if weight.ndim == 4 else weight
    for axis in (2, 3) if weight.ndim == 4 else (0,):
        mirrored = ops.roll(mirrored, weight.shape[axis] // 2, axis=axis)
    return (weight + mirrored) / 2


def join(trained):
    """Joins networks under one dense layer, whose logits are the mean of theirs.

    Args:
        trained: list of networks as of `build_model`, of the same classes.

    Returns:
        model: `keras.Model` from faces (N, 48, 48, 1), 0..255, to probabilities (N, classes); it shares all of their
            layers but the dense ones.
    """
    faces = keras.Input((utils.IMAGE_SIZE, utils.IMAGE_SIZE, 1), name="faces")
    features = [
        keras.Model(network.input, network.layers[-1].input, name=f"network_{number}")(faces)
        for number, network in enumerate(trained, start=1)
    ]
    kernels = [network.layers[-1].kernel for network in trained]
    dense = layers.Dense(kernels[0].shape[1], activation="softmax", use_bias=False, name="probabilities")
    model = keras.Model(faces, dense(layers.Concatenate()(features)), name="joined")
    dense.kernel.assign(ops.concatenate(kernels) / len(kernels))
    return model


def count_macs(model):
    """Counts the multiply-adds of one face's forward pass in convolutions and dense layers; the rest is under 2 %."""
    macs = 0
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            macs += count_macs(layer)
        elif isinstance(layer, layers.Conv2D):
            _, height, width, _ = layer.compute_output_shape(layer.input.shape)
            macs += height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, layers.Dense):
            macs += int(np.prod(layer.kernel.shape))
    return macs


class Augmentation(layers.Layer):
    """Flips, turns, scales, shifts, changes the contrast and erases a rectangle of each face, where the network trains.

    Args:
        numbers: one of `NETWORKS`.

    Attributes:
        size: width and height in pixels of the crop that is left of each face, around its middle before the shift. In
            inference faces pass as they are.
    """

    def __init__(self, numbers):
        super().__init__(dtype="float32")  # Under mixed precision too: coordinates need more than 8 bits.
        self.numbers = numbers
        self.size = utils.IMAGE_SIZE
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, faces, training=False):
        return self.erase(self.change_contrast(self.warp(faces))) if training else faces

    def uniform(self, low, high, *shape):
        return keras.random.uniform(shape, low, high, seed=self.seed_generator)

    def warp(self, faces):
        """Takes each pixel of the result from where the inverse of flip, rotation, scale and shift puts it."""
        count = ops.shape(faces)[0]
        flip = ops.sign(self.uniform(-1, 1, count))
        angle = np.deg2rad(self.numbers["MAX_ROTATION"]) * self.uniform(-1, 1, count)
        scale = 1 / (1 + self.uniform(-self.numbers["MAX_SCALE"], self.numbers["MAX_SCALE"], count))
        cos, sin = scale * ops.cos(angle), scale * ops.sin(angle)
        # The middle of the face lands in the middle of the crop, moved by the shift.
        x, y = (
            (self.size - 1) / 2 + self.size * self.uniform(-recipe.MAX_SHIFT, recipe.MAX_SHIFT, count) for _ in "xy"
        )
        middle, zero = (utils.IMAGE_SIZE - 1) / 2, ops.zeros_like(x)
        to_x = (flip * cos, -flip * sin, middle - flip * (cos * x - sin * y))
        to_y = (sin, cos, middle - sin * x - cos * y)
        matrices = ops.stack([*to_x, *to_y, zero, zero], axis=1)
        warped = ops.image.affine_transform(
            faces, matrices, interpolation="bilinear", fill_mode="nearest", data_format="channels_last"
        )
        return warped[:, : self.size, : self.size]

    def change_contrast(self, faces):
        gain = 1 + self.uniform(-recipe.MAX_CONTRAST, recipe.MAX_CONTRAST, ops.shape(faces)[0], 1, 1, 1)
        return ops.clip(128 + gain * (faces - 128), 0, 255)

    def erase(self, faces):
        """Puts noise into a rectangle of some faces (Zhong et al., 2020)."""
        count = ops.shape(faces)[0]
        width, height = (self.uniform(*recipe.ERASING_SIDE, count, 1, 1, 1) for _ in "xy")
        left, top = ((1 - side) * self.uniform(0, 1, count, 1, 1, 1) for side in (width, height))
        pixel = (ops.arange(self.size, dtype="float32") + 0.5) / self.size
        x, y = ops.reshape(pixel, (1, 1, -1, 1)), ops.reshape(pixel, (1, -1, 1, 1))
        inside = (ops.abs(x - left - width / 2) < width / 2) & (ops.abs(y - top - height / 2) < height / 2)
        chosen = self.uniform(0, 1, count, 1, 1, 1) < self.numbers["ERASING_PROBABILITY"]
        return ops.where(inside & chosen, self.uniform(0, 255, *ops.shape(faces)), faces)


class AugmentedModel(keras.Model):
    """The network, from `build_model`, behind its augmentation: what is trained, while the network alone is kept."""

    def __init__(self, network):
        faces = keras.Input((utils.IMAGE_SIZE, utils.IMAGE_SIZE, 1))
        augmentation = Augmentation(recipe.NETWORKS[network.name])
        super().__init__(faces, network(augmentation(faces)))
        self.augmentation, self.network = augmentation, network

    def set_size(self, size):
        """Goes on with crops of another width."""
        self.augmentation.size = size
        self.train_function = None  # The compiled one is for the old width; `fit` makes another.

    def seed_epoch(self, seed, epoch):
        """Fixes what is random in an epoch: the state of dropout and augmentation is not among the saved weights."""
        for number, layer in enumerate([self.augmentation, *self.network.layers]):
            if hasattr(layer, "seed_generator"):
                layer.seed_generator.state.assign([(1000 * seed + number) % 2**32, 1_000_000 * epoch])
