"""The pictures of a report: what they show, in which order, and how large they are."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from dime.core.images import difference_map
from dime.core.report.data import read_experiment
from dime.core.report.images import (
    GIF_PIXELS,
    SHEET_PIXELS,
    contact_sheet,
    denoising_animation,
    difference_image,
    embedded,
    evenly,
    film_strip,
)
from tests.report_world import STEPS, make_experiment


@pytest.mark.parametrize("count", [1, 11, 12, 13, 500])
def test_frames_are_evenly_spaced_with_both_ends(count):
    chosen = evenly(count, 12)
    assert len(set(chosen)) == min(count, 12) and chosen[0] == 0 and chosen[-1] == count - 1
    gaps = np.diff(chosen)
    assert len(gaps) == 0 or 0 <= gaps.max() - gaps.min() <= 1


def test_an_embedded_image_is_a_small_webp_of_the_same_picture_and_never_enlarged():
    image = Image.fromarray(np.full((40, 30, 3), (200, 30, 90), dtype=np.uint8))
    for pixels, size in ((None, (30, 40)), (128, (30, 40)), (20, (15, 20))):
        again = Image.open(io.BytesIO(base64.b64decode(embedded(image, pixels))))
        assert again.format == "WEBP" and again.size == size
        assert np.abs(np.asarray(again.convert("RGB"), float) - (200, 30, 90)).max() < 6  # lossy chroma


def test_a_missing_difference_map_is_made(tmp_path):
    tree = make_experiment(tmp_path, "exp", [0])
    for path in tree.results.rglob("SM/*.jpg"):
        path.unlink()
    image = read_experiment(tree).images[0]
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in (image.pair.original, image.pair.counterfactual)]
    np.testing.assert_array_equal(np.asarray(difference_image(image)), difference_map(*pixels))


def test_a_film_strip_has_the_first_and_the_last_frame(tmp_path):
    greys = np.linspace(0, 240, 30).astype(int)
    paths = [tmp_path / f"{step:04d}.png" for step in range(30)]
    for path, grey in zip(paths, greys, strict=True):
        Image.new("RGB", (32, 32), (grey, grey, grey)).save(path)
    strip = np.asarray(film_strip(paths))
    assert strip.shape == (96, 96 * 12, 3)
    assert strip[0, 0, 0] == greys[0] and strip[0, -1, 0] == greys[-1]
    assert (np.diff(strip[0, ::96, 0].astype(int)) > 0).all()


def test_the_contact_sheet_has_three_pictures_of_each_image(tmp_path):
    results = list(read_experiment(make_experiment(tmp_path, "exp", range(10))).images.values())
    whole, one = contact_sheet(results), contact_sheet(results[:1])
    assert whole.width > 8 * SHEET_PIXELS and whole.height > 6 * SHEET_PIXELS
    assert SHEET_PIXELS < one.width < 2 * SHEET_PIXELS and one.height > 3 * SHEET_PIXELS
    cf = Image.open(results[0].pair.counterfactual).convert("RGB")
    expected = np.asarray(cf.resize((SHEET_PIXELS, SHEET_PIXELS), Image.Resampling.LANCZOS))
    left, top = one.width - SHEET_PIXELS - 6, 6 + 18 + SHEET_PIXELS + 6  # the second of the three
    np.testing.assert_array_equal(np.asarray(one)[top : top + SHEET_PIXELS, left : left + SHEET_PIXELS], expected)


def test_the_animation_ends_with_the_counterfactual(tmp_path):
    result = read_experiment(make_experiment(tmp_path, "exp", [0], with_frames=[0])).images[0]
    with Image.open(io.BytesIO(denoising_animation(result))) as animation:
        frames = [np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(animation)]
    assert len(frames) == STEPS + 1 and frames[0].shape == (GIF_PIXELS, 3 * GIF_PIXELS + 12, 3)
    last = frames[-1]
    np.testing.assert_array_equal(last[:, GIF_PIXELS + 6 : 2 * GIF_PIXELS + 6], last[:, -GIF_PIXELS:])
    cf = Image.open(result.pair.counterfactual).convert("RGB")
    expected = np.asarray(cf.resize((GIF_PIXELS, GIF_PIXELS), Image.Resampling.LANCZOS), float)
    assert np.abs(last[:, -GIF_PIXELS:] - expected).mean() < 30  # 256 colours and dithering, on noise
    assert np.abs(frames[0][:, -GIF_PIXELS:] - expected).mean() > 45
