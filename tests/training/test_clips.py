"""Tests of the clips of mtu.training.data. Writes only under tmp_path; needs the extra [train]."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")

from mtu.core.errors import InvalidInputError  # noqa: E402
from mtu.training.data import camera, clips, demo_clip, render, textures  # noqa: E402
from mtu.training.data.scene import Clip, Layer, Path4, Scene, object_layer  # noqa: E402

TRAIN = textures.sample_photographs("train")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny pictures gain nothing from threads and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def still(**changes: object) -> Path4:
    zero = np.zeros(4, np.float32)
    parts = {"start": zero, "velocity": zero, "amplitude": np.zeros((4, 1), np.float32)}
    parts |= {"frequency": np.ones((4, 1), np.float32), "phase": np.zeros((4, 1), np.float32)}
    return Path4(**{**parts, **changes})  # type: ignore[arg-type]


def drift(*velocity: float) -> Path4:
    return still(velocity=np.array((*velocity, 0, 0, 0, 0)[:4], np.float32))


def squares(seed: int, size: int = 400) -> textures.Array:
    return np.kron(np.random.default_rng(seed).random((size // 4, size // 4, 3)), np.ones((4, 4, 1))).astype(np.float32)


def textured_scene(path: Path4, *objects: Layer, shutter: float = 0.8, noise: float = 0.0) -> Scene:
    return Scene((object_layer(squares(1), None, still()), *objects), path, shutter, 15, noise)


def square(path: Path4, parallax: float = 1.0, side: int = 40) -> Layer:
    """An object of side / 2 frame pixels, without the clear border."""
    mask = np.zeros((side + 8, side + 8), np.float32)
    mask[4:-4, 4:-4] = 1
    return object_layer(squares(2, side + 8), mask, path, parallax)


def rendered(scene: Scene, frames: int, height: int, width: int) -> Clip:
    return render.render(scene, frames, height, width, np.random.default_rng(0))


def same(a: Clip, b: Clip) -> bool:
    return all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ("blurred", "sharp", "motion"))


# --- a seed and its clip


def test_a_seed_gives_the_same_clip_again_and_another_one_another() -> None:
    first, again, other = (clips.make_clip(seed, 3, 24, 32) for seed in (5, 5, 6))
    assert first.blurred.shape == first.sharp.shape == (3, 24, 32, 3)
    assert first.blurred.dtype == first.sharp.dtype == np.uint8
    assert first.motion.shape == (3, 24, 32, 2) and first.motion.dtype == np.float16
    assert same(first, again)
    assert not np.array_equal(first.sharp, other.sharp)


def test_the_number_of_threads_changes_nothing() -> None:
    one = [clips.make_clip(seed, 2, 45, 64) for seed in range(4)]
    torch.set_num_threads(2)
    assert all(same(clip, clips.make_clip(seed, 2, 45, 64)) for seed, clip in enumerate(one))


def test_a_longer_clip_begins_with_the_same_frames() -> None:
    scene = dataclasses.replace(textured_scene(drift(3, 1), noise=1), crf=None)
    short, long = (rendered(scene, frames, 24, 24) for frames in (2, 4))
    assert same(short, Clip(long.blurred[:2], long.sharp[:2], long.motion[:2]))


def test_the_splits_share_no_photograph_and_no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not set(textures.TRAINED_ON) & set(textures.HELD_OUT)
    asked: set[str] = set()
    original = textures.photograph

    def noted(path: Path) -> np.ndarray:
        asked.add(path.name)
        return original(path)

    monkeypatch.setattr(textures, "photograph", noted)
    drawn = {}
    splits: tuple[textures.Split, ...] = ("train", "validation")
    for split in splits:
        asked.clear()
        for seed in range(12):
            clips.random_scene(np.random.default_rng(seed), 16, 16, textures.sample_photographs(split))
        drawn[split] = set(asked)
    assert drawn["train"] and drawn["train"] <= set(textures.TRAINED_ON)
    assert drawn["validation"] and drawn["validation"] <= set(textures.HELD_OUT)
    train, validation = clips.make_clip(2, 1, 24, 24), clips.make_clip(2, 1, 24, 24, split="validation")
    assert not np.array_equal(train.sharp, validation.sharp)


@pytest.mark.parametrize("arguments", [(-1, 2, 8, 8), (0, 0, 8, 8), (0, 2, 0, 8)])
def test_impossible_clips_are_refused(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(InvalidInputError, match="seed"):
        clips.make_clip(*arguments)


def test_scenes_are_of_every_kind() -> None:
    scenes = [clips.random_scene(np.random.default_rng(seed), 16, 16, TRAIN) for seed in range(200)]
    # The camera's speed in frame pixels over one exposure; its waves at their fastest.
    waves = [(scene.camera.amplitude * scene.camera.frequency)[:2].sum() for scene in scenes]
    lines = [np.hypot(*scene.camera.velocity[:2]) for scene in scenes]
    blurs = np.array([(a + b) * scene.shutter for a, b, scene in zip(waves, lines, scenes, strict=True)])
    assert 10 <= (blurs == 0).sum() <= 32
    assert 18 <= ((blurs > 0) & (blurs < 4)).sum() <= 80
    assert 0.3 < np.mean([scene.camera.amplitude.shape[1] == 7 for scene in scenes]) < 0.5  # held by hand
    assert 0.3 < np.mean([scene.readout > 0 for scene in scenes]) < 0.5
    parallaxes = np.array([layer.parallax for scene in scenes for layer in scene.layers[1:]])
    assert 0.25 < (parallaxes > 1).mean() < 0.45 and 0.1 < (parallaxes == 0).mean() < 0.3
    assert 0.12 < np.mean([scene.crf is not None for scene in scenes]) < 0.28
    assert 0.04 < np.mean([scene.noise > 1.5 for scene in scenes]) < 0.17
    assert {len(scene.layers) for scene in scenes} == {1, 2, 3, 4, 5}
    assert all(np.diff([layer.parallax for layer in scene.layers[1:]]).min(initial=0) >= 0 for scene in scenes)
    gammas = [scene.curve.gamma for scene in scenes]
    assert None in gammas and all(gamma is None or 1.8 <= gamma <= 2.4 for gamma in gammas)


def test_objects_are_in_view_at_some_time() -> None:
    found = 0
    for seed in range(12):
        scene = clips.random_scene(np.random.default_rng(seed), 24, 24, TRAIN)
        for layer in scene.layers[1:]:
            centres = scene.transforms(layer, np.arange(0, 16.1, 0.1, np.float32))[:, :2, 2]
            assert np.abs(centres).max(1).min() < 12
            found += 1
    assert found > 6


# --- blur


def test_without_motion_the_blurred_frame_is_the_sharp_one() -> None:
    clip = rendered(textured_scene(still()), 2, 32, 32)
    assert np.array_equal(clip.blurred, clip.sharp)
    assert (clip.motion == 0).all()


def test_the_blurred_frame_is_the_mean_of_its_exposure_in_linear_light() -> None:
    # A moving edge between black and white: a pixel half covered is the mean of LIGHT, which is 188 in sRGB.
    edge = np.zeros((400, 400, 3), np.float32)
    edge[:, 200:] = 1
    scene = Scene((object_layer(edge, None, still()),), drift(20), 1.0, 31, 0)
    clip = rendered(scene, 1, 8, 64)
    light = camera.to_linear(clip.blurred[0].astype(np.float32) / 255)
    ramp = (np.arange(64) + 0.5 - 32 + 10) / 20
    assert np.abs(light[4, :, 0] - ramp.clip(0, 1)).max() < 0.04
    assert abs(int(clip.blurred[0, 4, 31:33].mean()) - 188) < 6


def test_blur_keeps_the_brightness_of_light_but_not_of_srgb_values() -> None:
    clip = rendered(textured_scene(drift(9, 4)), 1, 96, 96)
    blurred, sharp = (part[0].astype(np.float32) / 255 for part in (clip.blurred, clip.sharp))
    assert ((blurred - sharp) ** 2).mean() > 1e-3
    assert camera.to_linear(blurred).mean() == pytest.approx(camera.to_linear(sharp).mean(), rel=0.03)
    assert blurred.mean() > 1.03 * sharp.mean()


def test_slow_exposures_take_fewer_samples_and_look_the_same() -> None:
    def scene(samples: int) -> Scene:
        return dataclasses.replace(textured_scene(drift(5), square(drift(2, 3))), samples=samples)

    counts = []
    for path in (still(), drift(2), drift(12), drift(200)):
        moved = dataclasses.replace(textured_scene(path), samples=31)
        times = render._instants(moved, 4, 32, 32)
        counts.append(len(times))
        assert times[len(times) // 2] == 4 and times[-1] - times[0] < moved.shutter
    assert counts == [1, 11, 15, 31]
    few, many = (rendered(scene(samples), 1, 48, 48).blurred.astype(int) for samples in (11, 201))
    assert np.abs(few - many).max() <= 3


def test_an_object_is_rendered_whole_within_its_box(monkeypatch: pytest.MonkeyPatch) -> None:
    turning = still(velocity=np.array((5, -4, 0.3, 0.1), np.float32))
    scene = textured_scene(drift(2, 1), square(turning), square(still(start=np.array((-20, 9, 1, 0), np.float32))))
    boxed = rendered(scene, 3, 40, 56)
    assert (boxed.motion[0] != boxed.motion[0, 0, -1]).any()
    monkeypatch.setattr(render, "_box", lambda layer, matrices, height, width: (range(height), range(width)))
    assert same(boxed, rendered(scene, 3, 40, 56))


# --- motion


def warped(clip: Clip, frame: int) -> tuple[textures.Array, np.ndarray]:
    """The sharp frame before, moved to its place in `frame`, and where that is known."""
    motion = clip.motion[frame].astype(np.float32)
    known = ~np.isnan(motion).any(-1)
    rows, columns = (np.nan_to_num(motion[..., axis]) + np.indices(known.shape)[axis] for axis in (0, 1))
    top, left = (
        np.floor(part).astype(int).clip(0, size - 2) for part, size in zip((rows, columns), known.shape, strict=True)
    )
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    before = clip.sharp[frame - 1].astype(np.float32)
    upper = before[top, left] * (1 - right) + before[top, left + 1] * right
    lower = before[top + 1, left] * (1 - right) + before[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down, known


def test_motion_says_where_the_sharp_frame_was() -> None:
    scene = textured_scene(drift(3, -2))
    matrices = scene.transforms(scene.layers[0], np.arange(2, dtype=np.float32))
    assert (matrices[1] - matrices[0])[:2, 2] == pytest.approx((3, -2))
    clip = rendered(scene, 2, 64, 48)
    # What is at (10, 10) now was three pixels further left and two further down: (dy, dx) = (2, -3).
    assert np.array_equal(clip.motion[1, 10, 10], (2, -3))
    here, there = clip.sharp[1, 10:40, 10:40].astype(int), clip.sharp[0, 12:42, 7:37].astype(int)
    assert np.abs(here - there).max() <= 1
    # Frame 0 likewise; the left columns and the lower rows were out of the frame.
    unknown = np.isnan(clip.motion[0]).any(-1)
    assert unknown[:, :3].all() and unknown[-2:].all() and not unknown[:-2, 3:].any()


@pytest.mark.parametrize("readout", [0.0, 0.9])
def test_motion_of_turning_and_zooming_is_exact(readout: float) -> None:
    path = still(velocity=np.array((1, 2, 0.04, 0.03), np.float32))
    soft = np.repeat(np.linspace(0.1, 0.9, 400, dtype=np.float32)[:, None], 400, 1)
    picture = np.stack((soft, soft.T, np.sin(9 * soft) * 0.4 + 0.5), -1)
    clip = rendered(Scene((object_layer(picture, None, still()),), path, 0.5, 15, 0, readout=readout), 4, 64, 80)
    for frame in (1, 3):
        picture, known = warped(clip, frame)
        assert known.mean() > 0.8
        assert np.abs(picture - clip.sharp[frame])[known].max() < 2


def test_a_rolling_shutter_sees_the_lower_rows_later() -> None:
    at_once = textured_scene(drift(12, 0), shutter=0.5)
    rolling = dataclasses.replace(at_once, readout=0.5)
    clips_of = [rendered(scene, 3, 64, 96) for scene in (at_once, rolling)]
    # From the first row to the last it goes 6 pixels further: a straight edge leans.
    for row in (0, 31, 63):
        late = 12 * 0.5 * ((row + 0.5) / 64 - 0.5)
        shift = round(late)
        straight, leaning = (clip.sharp[1, row, 20:70].astype(int) for clip in clips_of)
        if abs(late - shift) < 0.06:
            moved = clips_of[0].sharp[1, row, 20 - shift : 70 - shift].astype(int)
            assert np.abs(leaning - moved).mean() < 6 < np.abs(straight - leaning).mean() or shift == 0
    # It went 12 pixels a frame in every row, and the blur of each row is as long as ever.
    assert np.array_equal(clips_of[1].motion[1, 32, 40], (0, -12))
    blurs = [np.abs(np.diff(clip.blurred[1, 5:60, 20:70].astype(int), axis=1)).mean() for clip in clips_of]
    assert blurs[0] == pytest.approx(blurs[1], rel=0.1)


def test_a_rolling_shutter_changes_nothing_that_stands_still() -> None:
    scene = textured_scene(still(), square(still()))
    assert same(rendered(scene, 2, 32, 40), rendered(dataclasses.replace(scene, readout=0.8), 2, 32, 40))


def test_a_camera_held_by_hand_shakes_at_all_frequencies_and_no_faster_than_asked() -> None:
    times = np.arange(0, 240, 0.25, np.float32)
    power = np.zeros(len(times) // 2)
    for seed in range(60):
        path = clips.handheld_path(np.random.default_rng(seed), 10.0, 200.0)
        speed = np.diff(path.at(times)[:, 0, 2]) / 0.25
        assert np.abs(speed).max() < 10.5
        power += np.abs(np.fft.rfft((speed - speed.mean()) * np.hanning(len(speed))))[: len(power)] ** 2
    cycles = np.fft.rfftfreq(len(times) - 1, 0.25)[: len(power)]  # a frame; times 30 for Hz

    def mean(low: float, high: float) -> float:
        return float(power[(cycles >= low / 30) & (cycles < high / 30)].mean())

    assert mean(0.6, 2) > 2 * mean(3, 6) > 4 * mean(13, 40)
    assert mean(8.2, 11.8) > 3 * mean(13, 40)


def test_what_was_hidden_or_out_of_the_frame_has_no_motion() -> None:
    # A square of 20 pixels goes 6 to the right a frame before a background at rest.
    clip = rendered(textured_scene(still(), square(drift(6))), 2, 64, 64)
    field = clip.motion[1].astype(np.float32)
    # It spans columns 28 to 48 of frame 1 and covered 22 to 42 in frame 0: 22 to 28 were hidden, all else is known.
    unknown = np.isnan(field).any(-1)
    assert unknown[24:40, 23:27].all()
    assert unknown.sum() == pytest.approx(20 * 6, abs=10)
    assert (field[26:38, 30:46] == (0, -6)).all() and (field[:, 52:] == 0).all() and (field[:, :20] == 0).all()


def test_warping_by_the_motion_gives_the_next_sharp_frame() -> None:
    for seed in range(6):
        clip = clips.make_clip(seed, 3, 64, 64)
        picture, known = warped(clip, 2)
        if known.mean() > 0.3:
            # Bilinear sampling blurs thin lines and mixes what touches an outline, hence the median.
            errors = np.abs(picture - clip.sharp[2]).mean(-1)
            assert np.median(errors[known]) < 6, seed


def test_near_things_move_more_and_followed_things_do_not() -> None:
    camera_path = drift(4)
    layers = [square(still(), parallax) for parallax in (0, 1, 2.5)]
    for layer, pixels in zip(layers, (0, 4, 10), strict=True):
        clip = rendered(textured_scene(camera_path, layer), 1, 48, 48)
        assert np.array_equal(clip.motion[0, 24, 24], (0, -pixels))
        # What does not move before the camera is sharp.
        inner = np.abs(clip.blurred[0, 20:28, 20:28].astype(int) - clip.sharp[0, 20:28, 20:28])
        assert (inner.max() <= 1) == (pixels == 0)
    zooming = still(velocity=np.array((0, 0, 0, 0.1), np.float32))
    near = textured_scene(zooming).transforms(layers[2], np.ones(1, np.float32))
    assert near[0, 0, 0] == pytest.approx(np.exp(0.25))


# --- the camera


@pytest.mark.parametrize("curve", [camera.SRGB, camera.Curve(1.8), camera.Curve(2.4), camera.Curve(None, 0.6)])
def test_curves_rise_from_black_to_white(curve: camera.Curve) -> None:
    light = np.linspace(0, 1, 4001, dtype=np.float32)
    pixels = curve.pixels(light).astype(int)
    assert pixels[0] == 0 and pixels[-1] == 255 and (np.diff(pixels) >= 0).all()
    assert np.array_equal(curve.pixels(np.array((-1, 2), np.float32)), (0, 255))
    expected = 255 * (camera.to_srgb(light) if curve.gamma is None else light ** (1 / curve.gamma))
    error = np.abs(pixels - expected)
    assert (error.max() <= 0.55) if curve.contrast == 0 else 3 < error.max() < 30


def test_a_curve_is_applied_to_blurred_and_sharp_frames_alike() -> None:
    scene = dataclasses.replace(textured_scene(still()), curve=camera.Curve(2.0, 0.5))
    clip = rendered(scene, 1, 32, 32)
    assert np.array_equal(clip.blurred, clip.sharp)
    assert not np.array_equal(clip.sharp, rendered(textured_scene(still()), 1, 32, 32).sharp)


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_noise_has_its_strength_in_mid_grey_and_less_variance_in_the_dark(strength: float) -> None:
    spread = {}
    for light in (0.0, 0.02, 0.214, 0.8):
        plane = np.full((200, 200), light, np.float32)
        camera.add_noise(plane, strength, np.random.default_rng(0))
        assert plane.mean() == pytest.approx(light, abs=3e-4)
        spread[light] = float(plane.std())
    assert spread[0.214] * 255 * 1.08 == pytest.approx(strength, rel=0.03)
    assert spread[0.0] < 0.2 * spread[0.214]
    assert spread[0.8] ** 2 / spread[0.214] ** 2 == pytest.approx(0.8 / 0.214, rel=0.1)


def test_only_blurred_frames_are_noisy() -> None:
    quiet, noisy = (rendered(textured_scene(still(), noise=noise), 2, 48, 48) for noise in (0, 1.5))
    assert np.array_equal(quiet.sharp, noisy.sharp)
    assert 1 < (noisy.blurred.astype(float) - noisy.sharp).std() < 2


@pytest.mark.parametrize("size", [(1, 1), (17, 35), (48, 64)])
def test_compression_keeps_the_shape_and_the_colours(size: tuple[int, int]) -> None:
    flat = np.empty((3, *size, 3), np.uint8)
    flat[:] = (200, 60, 90)
    result = camera.compressed(flat, 18)
    assert result.shape == flat.shape and result.dtype == np.uint8
    assert np.abs(result.astype(int) - flat).max() <= 2


def test_compression_harms_more_at_a_higher_factor_and_is_repeatable() -> None:
    frames = rendered(textured_scene(drift(2, 1)), 3, 48, 64).sharp
    fine, coarse = (camera.compressed(frames, crf) for crf in (16, 30))
    errors = [float(np.abs(part.astype(int) - frames).mean()) for part in (fine, coarse)]
    assert 0 < errors[0] < errors[1]
    kept = []
    for number in range(20):
        # Other memory each time: x264 is known to give other bits then unless it is told not to.
        kept.append(np.random.default_rng(number).integers(0, 255, 1 + 9999 * number, np.uint8))
        assert np.array_equal(camera.compressed(frames, 30), coarse)


def test_only_blurred_frames_are_compressed() -> None:
    scene = textured_scene(drift(4))
    plain, packed = (rendered(dataclasses.replace(scene, crf=crf), 2, 32, 32) for crf in (None, 28))
    assert np.array_equal(plain.sharp, packed.sharp) and not np.array_equal(plain.blurred, packed.blurred)
    assert np.array_equal(packed.blurred, camera.compressed(plain.blurred, 28))


# --- what is made of clips


def test_the_demo_takes_only_held_out_photographs() -> None:
    scene = demo_clip.demo_scene()
    assert set(demo_clip.PHOTOGRAPHS) <= set(textures.HELD_OUT)
    assert scene.crf is None and scene.curve == camera.SRGB
    clip = rendered(scene, 1, demo_clip.HEIGHT // 8, demo_clip.WIDTH // 8)
    assert clip.blurred.shape == (1, demo_clip.HEIGHT // 8, demo_clip.WIDTH // 8, 3)
