"""DMENet as its authors save it, with random values, and what it computes, written plainly. Nothing here is a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NET = "main_net/defocus_net/"
SMALL = {"blocks": 2, "channels": 4}
"""A network of the same structure, a few hundred times as cheap."""
LEVELS = (("u3", 16, 4), ("u2", 8, 2), ("u1", 4, 1))
"""Inputs and outputs of the decoder's levels, in channels at the whole size."""

Arrays = dict[str, np.ndarray]


def arrays(settings: dict[str, int], seed: int = 2) -> Arrays:
    """The arrays that inference needs; scaled so that features keep their size and the map takes all its values."""
    rng, c, found = np.random.default_rng(seed), settings["channels"], {}

    def conv(name: str, inputs: int, outputs: int, size: int = 3, scale: float = 1.0) -> None:
        spread = scale * np.sqrt(2 / (size * size * inputs))
        found[f"{NET}{name}/kernel:0"] = rng.normal(0, spread, (size, size, inputs, outputs))
        found[f"{NET}{name}/bias:0"] = rng.normal(0, 0.1, outputs)

    def conv_norm(level: str, name: str, inputs: int, outputs: int, size: int = 3, scale: float = 1.0) -> None:
        conv(f"decoder/{level}/c{name}", inputs, outputs, size, scale)
        norm = f"{NET}decoder/{level}/b{name}"
        found[f"{norm}/beta:0"] = rng.normal(0, 0.2, outputs)
        found[f"{norm}/moving_mean:0"] = rng.normal(0, 0.2, outputs)
        found[f"{norm}/moving_variance:0"] = rng.uniform(0.5, 1.5, outputs)

    inputs = 3
    for stage, count in enumerate((2, 2, 4, 4, 4), 1):
        for number in range(1, count + 1):
            outputs = c * (1, 2, 4, 8, 8)[stage - 1]
            conv(f"encoder/conv{stage}_{number}", inputs, outputs, scale=1 / 60 if inputs == 3 else 1.0)
            inputs = outputs
    for level, inputs, outputs in LEVELS:
        for number in (1, 2, 3):
            conv_norm(level, str(number), c * (inputs if number == 1 else outputs), c * outputs)
    conv_norm("u0", "_init", 2 * c, c)
    for block in range(settings["blocks"]):
        conv_norm("u0", f"_res{block}", c, c, 1, scale=0.7)
        conv_norm("u0", f"{block}_1", c, c)
        conv_norm("u0", f"{block}_2", c, c, scale=0.7)
    conv_norm("uf", "1", c, c)
    conv_norm("uf", "2", c, c // 2)
    conv("decoder/uf/c3", c // 2, 1)
    return {name: value.astype(np.float32) for name, value in found.items()}


def extras() -> Arrays:
    """What else a released file holds, by name; far smaller than it is there."""
    norm = ("beta", "moving_mean", "moving_variance")
    names = [f"{NET}encoder/{name}" for name in ("conv6_1/kernel", "conv6_1/bias", "c_logits_2/W", "c_logits_2/b")]
    names += [f"{NET}encoder/c_logits_1/{each}" for each in ("kernel", "bias", "W", "b")]
    for n in (1, 2):
        for level in ("u4", "u3", "u2", "u1", "u0"):
            names += [f"{NET}decoder/{level}_aux/c{n}/{each}" for each in ("kernel", "bias")]
            names += [f"{NET}decoder/{level}_aux/b{n}/{each}" for each in norm]
    for level in ("l1", "l2", "l3"):
        for n in (1, 2, 3):
            names += [f"main_net/binary_net/{level}/c{n}/{each}" for each in ("kernel", "bias")]
            names += [f"main_net/binary_net/{level}/b{n}/{each}" for each in norm]
    names += [f"main_net/binary_net/l4/c1/{each}" for each in ("kernel", "bias")]
    names += [f"discriminator/feature/h{n}/c/kernel" for n in range(5)]
    names += [f"discriminator/feature/h{n}/b/{each}" for n in range(1, 5) for each in norm]
    return {f"{name}:0": np.ones(2, np.float32) for name in names}


def write_npz(path: Path, found: Arrays) -> Path:
    """As TensorLayer does it."""
    np.savez(path, **found)
    return path


def reference(picture: np.ndarray, found: Arrays, blocks: int) -> np.ndarray:
    """The map of an RGB picture in [0, 1], [H, W, 3]: the facts, line by line, over the released arrays.

    Layout, order and borders are TensorFlow's; nothing is folded. Height and width are multiples of 16.
    """
    values = {name.removeprefix(NET).removesuffix(":0"): array.astype(np.float64) for name, array in found.items()}

    def conv(name: str, x: np.ndarray) -> np.ndarray:
        kernel = values[f"{name}/kernel"]
        height, width = x.shape[:2]
        if kernel.shape[0] == 3:
            x = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="symmetric")
        return values[f"{name}/bias"] + sum(
            x[dy : dy + height, dx : dx + width] @ kernel[dy, dx]
            for dy in range(kernel.shape[0])
            for dx in range(kernel.shape[1])
        )

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        variance = values[f"{name}/moving_variance"]
        return (x - values[f"{name}/moving_mean"]) / np.sqrt(variance + 1e-5) + values[f"{name}/beta"]

    def leaky(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x, 0.2 * x)

    def layer(level: str, name: str, x: np.ndarray) -> np.ndarray:
        return leaky(norm(f"decoder/{level}/b{name}", conv(f"decoder/{level}/c{name}", x)))

    def pool(x: np.ndarray) -> np.ndarray:
        return np.maximum.reduce([x[0::2, 0::2], x[0::2, 1::2], x[1::2, 0::2], x[1::2, 1::2]])

    def up(x: np.ndarray) -> np.ndarray:
        """TensorFlow's nearest with align_corners: position j of 2n is at j (n - 1) / (2n - 1), rounded half up."""
        for axis in (0, 1):
            n = x.shape[axis]
            at = [int(np.floor(j * (n - 1) / (2 * n - 1) + 0.5)) for j in range(2 * n)]
            x = x.take(at, axis)
        return x

    x = (picture * 255)[:, :, ::-1] - np.array([103.939, 116.779, 123.68])
    skips = []
    for stage, count in enumerate((2, 2, 4, 4, 4), 1):
        x = pool(x) if stage > 1 else x
        for number in range(1, count + 1):
            x = np.maximum(conv(f"encoder/conv{stage}_{number}", x), 0)
        skips.append(x)
    d0, d1, d2, d3, x = skips
    for level, skip in (("u3", d3), ("u2", d2), ("u1", d1)):
        x = np.concatenate([up(x), skip], 2)
        for number in ("1", "2", "3"):
            x = layer(level, number, x)
    x = layer("u0", "_init", np.concatenate([up(x), d0], 2))
    for block in range(blocks):
        x = layer("u0", f"{block}_2", layer("u0", f"{block}_1", x)) + layer("u0", f"_res{block}", x)
    x = conv("decoder/uf/c3", layer("uf", "2", layer("uf", "1", x)))
    return 1 / (1 + np.exp(-x[:, :, 0]))
