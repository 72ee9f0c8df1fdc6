"""Compares what two runs of a graph gave under Polygraphy: a script for its --compare-func-script. Imports numpy.

polygraphy run model/step.onnx --onnxrt ... --load-outputs golden --compare-func-script calib/polygraphy_psnr.py

Polygraphy hands a script no options, so the floors are in the environment:

    MTU_MIN_PSNR       dB that the picture and every state must reach, 50 unless set
    MTU_MIN_AGREEMENT  percent of the displacements that must be equal, 99 unless set
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np

from mtu.calib.polygraphy_data import errors_said
from mtu.calib.rollout import Array
from mtu.core.errors import InvalidInputError


def compare_outputs(found: Mapping[str, Array], reference: Mapping[str, Array]) -> dict[str, bool]:
    """Whether each tensor of `reference` is as near in `found` as its floor asks, by name; the log says how near.

    Both map the names of a graph's outputs to arrays, as Polygraphy's IterationResult does, which hands over the saved
    one second. By type: uint8 is a picture, whose PSNR has the peak 255; int32 a displacement; all else a state or a
    map, whose peak is its largest value in `reference`. A tensor that `found` lacks, has in another shape or with a
    value that is not finite is below every floor. A floor that is no number ends the run.
    """
    from polygraphy.logger import G_LOGGER

    with errors_said():
        psnr_floor, agreement_floor = _floor("MTU_MIN_PSNR", 50), _floor("MTU_MIN_AGREEMENT", 99)
    passed = {}
    for name, expected in reference.items():
        if name not in found or found[name].shape != expected.shape:
            got = f"of shape {list(found[name].shape)}" if name in found else "missing"
            passed[name], said = False, f"{got}, expected one of shape {list(expected.shape)}"
        elif expected.dtype == np.int32:
            share = 100 * float((found[name] == expected).mean())
            passed[name], said = share >= agreement_floor, f"{share:.2f}% equal, floor {agreement_floor:g}%"
        else:
            peak = 255.0 if expected.dtype == np.uint8 else float(np.abs(expected).max())
            value = _psnr(found[name], expected, peak)
            passed[name] = value >= psnr_floor
            said = "equal" if value == math.inf else f"PSNR {value:.2f} dB, floor {psnr_floor:g} dB"
            if not np.isfinite(found[name]).all():
                said = "has values that are not finite"
        (G_LOGGER.finish if passed[name] else G_LOGGER.error)(f"{name}: {said}")
    return passed


def _psnr(found: Array, expected: Array, peak: float) -> float:
    """In dB; infinite where the two are equal, below every floor or NaN where a value is not finite."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = np.mean(np.square(found.astype(np.float32) - expected.astype(np.float32)), dtype=np.float64)
        return float(10 * np.log10(peak**2 / error)) if error else math.inf


def _floor(variable: str, default: float) -> float:
    text = os.environ.get(variable, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInputError(f"{variable} is '{text}': it must be a number")
    return value
