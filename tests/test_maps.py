"""Strengths by place: a map is brought to the latent by area, means its numbers exactly, and
reaches no further.
"""

import pickle

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import photo

from pisasr.method.residual import needed, needed_by, restore_latent
from pisasr.pictures.frames import plan_frame
from pisasr.pictures.maps import check_proportions, check_strength, to_latent
from pisasr.pipeline import Prediction

SMALL = {"upscale": 2, "process_size": 16}
TILES = {**SMALL, "tile_size": 6, "tile_overlap": 2}


def by_hand(levels: np.ndarray, frame, factor: int) -> np.ndarray:
    """The same by brute force: thirty-two samples a pixel along each side."""
    width, height = frame.content
    places = [np.arange(32 * side) / 32 + 1 / 64 for side in (height, width)]
    rows, columns = (
        (place * cells / side).astype(int)
        for place, cells, side in zip(places, levels.shape, (height, width), strict=True)
    )
    fine = levels[np.ix_(rows, columns)].reshape(height, 32, width, 32).mean(axis=(1, 3))
    below, right = frame.padded[1] - height, frame.padded[0] - width
    padded = np.pad(fine, ((0, below), (0, right)), mode="reflect")
    return padded.reshape(padded.shape[0] // factor, factor, -1, factor).mean(axis=(1, 3))


@pytest.mark.parametrize("size", [(12, 9), (40, 30), (3, 2), (37, 28)])
@pytest.mark.parametrize("upscale", [1, 1.5, 4])
def test_a_map_goes_where_the_picture_goes_by_area(size, upscale):
    frame = plan_frame(12, 9, upscale, 16, multiple=4)
    levels = tiny.wave(size[::-1], 1.0).double().numpy()
    np.testing.assert_allclose(to_latent(levels, frame, 4), by_hand(levels, frame, 4), atol=0.02)


def test_what_covers_one_value_has_it_exactly_and_a_mean_lies_between():
    frame = plan_frame(50, 41, 4, 16, multiple=8)
    levels = np.full((410, 500), 0.7)
    levels[:, 250:] = 1 / 3
    z = to_latent(levels, frame, 8)
    assert z.shape == (21, 25) and z.dtype == torch.float32
    assert (z[:, :12] == np.float32(0.7)).all() and (z[:, 13:] == np.float32(1 / 3)).all()
    torch.testing.assert_close(z[:, 12], torch.full((21,), (0.7 + 1 / 3) / 2))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            np.zeros((2, 3, 1)),
            r"lambda_sem is an array of shape \[2, 3, 1\]; a map of strengths is",
        ),
        (np.zeros((0, 3)), r"shape \[0, 3\]"),
        (np.full((2, 3), 255, np.uint8), "lambda_sem is a map of uint8"),
        (np.array([[0, np.nan]]), "lambda_sem is a map that holds nan or inf"),
        ("much", "lambda_sem is 'much'; it must be a number, or a map"),
        (None, "lambda_sem is None; it must be a number"),
    ],
)
def test_what_is_no_strength_is_refused_in_one_line(given, said):
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        check_strength("lambda_sem", given)
    assert "\n" not in str(caught.value)


def test_maps_come_as_arrays_or_tensors_and_of_one_value_are_that_number():
    assert check_strength("lambda_pix", np.full((3, 4), 0.7)) == 0.7
    assert (
        check_strength("lambda_pix", torch.tensor(0.5))
        == check_strength("lambda_pix", np.float32(0.5))
        == 0.5
    )
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert np.array_equal(
            check_strength("lambda_pix", torch.tensor([[0.5, 1.5]], dtype=dtype)), [[0.5, 1.5]]
        )


def test_a_map_has_the_pictures_proportions():
    for size in ((120, 90), (4, 3), (7, 5), (6, 5), (12, 9)):
        check_proportions("lambda_pix", np.zeros(size[::-1]), (12, 9))
    for size in ((90, 120), (12, 12), (120, 92)):
        with pytest.raises(
            ValueError, match=f"lambda_pix is a map of {size[0]}x{size[1]}, the picture is 12x9"
        ):
            check_proportions("lambda_pix", np.zeros(size[::-1]), (12, 9))
    (
        check_proportions("lambda_pix", 0.5, (12, 9)),
        check_proportions("lambda_pix", torch.tensor(0.5), (12, 9)),
    )


def test_a_map_of_one_value_has_the_pictures_proportions_too(pipe):
    picture = Image.new("RGB", (12, 9), "red")
    pipe(picture, np.full((3, 4), 0.5, np.float32), upscale=1, process_size=16)
    for constant in (np.ones((64, 64), np.float32), torch.ones(64, 64)):
        with pytest.raises(ValueError, match="lambda_sem is a map of 64x64, the picture is 12x9"):
            pipe(picture, 1.0, constant, upscale=1, process_size=16)


def test_at_every_place_a_map_is_its_numbers_to_the_bit():
    numbers = [0.0, 1.0, 0.7, -0.3, 1 / 3]
    z_L, eps_pix, eps_full = (tiny.wave((2, 4, 5, 5), phase) for phase in (1.0, 2.0, 3.0))
    pix = torch.tensor(numbers)[:, None].expand(5, 5)
    z_H = restore_latent(z_L, eps_pix, eps_full, pix, pix.T)
    for i, lambda_pix in enumerate(numbers):
        for j, lambda_sem in enumerate(numbers):
            alone = restore_latent(z_L, eps_pix, eps_full, lambda_pix, lambda_sem)
            assert torch.equal(z_H[..., i, j], alone[..., i, j]), (lambda_pix, lambda_sem)


def test_maps_need_what_one_of_their_places_needs():
    some = torch.tensor([[0.0, 1.0]])
    assert needed(some, some) == (False, True)
    assert needed(some, 0.0) == (True, False)
    assert needed(1.0, some) == needed(some, 1.0) == (True, True)
    assert needed(torch.zeros(1, 2), torch.zeros(1, 2)) == (False, False)
    assert needed_by([(some, 0.0), (some, some)]) == (True, True) and needed_by([]) == (
        False,
        False,
    )


@pytest.mark.parametrize(
    ("lambdas", "wanted"), [((1, 1), ["both"]), ((0.7, 0), ["pix"]), ((0.7, 0.3), ["pix", "both"])]
)
def test_a_constant_map_is_the_number_to_the_bit_and_in_cost(pipe, passes, lambdas, wanted):
    maps = [np.full((3, 4), value, np.float64) for value in lambdas]
    (came,) = pipe(photo(), *maps, **SMALL, output_type="np").images
    assert passes == wanted
    assert np.array_equal(came, pipe(photo(), *lambdas, **SMALL, output_type="np").images[0])
    mixed = pipe.decode(pipe.predict(photo(), **SMALL), *maps, output_type="np")
    assert np.array_equal(came, mixed)


def test_outside_a_masks_reach_the_latent_is_the_numbers(pipe):
    mask = np.full((9, 12), 0.7, np.float32)
    mask[2:7, 3:8] = (
        0.2  # of the result, 24 x 18, columns 6 to 16 and rows 4 to 14: latent pixels 1 to 3 each
    )
    came = pipe(photo(), 1.0, mask, **SMALL, output_type="latent").images[0]
    plain = pipe(photo(), 1.0, 0.7, **SMALL, output_type="latent").images[0]
    reached = torch.zeros(came.shape[1:], dtype=torch.bool)
    reached[1:4, 1:4] = True
    assert torch.equal(came[:, ~reached], plain[:, ~reached])
    assert (came != plain).any(dim=0)[reached].all()
    inside = pipe(photo(), 1.0, 0.2, **SMALL, output_type="latent").images[0]
    assert torch.equal(came[:, 1:3, 2:4], inside[:, 1:3, 2:4])  # wholly inside


def test_pictures_of_one_call_have_one_map_each_at_its_own_size(pipe):
    mask = np.linspace(0, 1, 12, dtype=np.float32)[None].repeat(9, axis=0)
    pictures = [photo(12, 9), photo(24, 18, "LA")]
    for together, alone in zip(pipe(pictures, mask, 0.5, **SMALL).images, pictures, strict=True):
        assert np.array_equal(together, pipe(alone, mask, 0.5, **SMALL).images[0])
    with pytest.raises(ValueError, match="lambda_pix is a map of 12x9, the picture is 9x12"):
        pipe([photo(12, 9), photo(9, 12)], mask, **SMALL)


@pytest.mark.parametrize(
    "options", [SMALL, TILES, {**SMALL, "color_fix": "wavelet", "generator": 3}]
)
def test_predict_and_decode_are_call_for_two_passes_and_one_encode(pipe, passes, options):
    pairs = [(1, 1), (1, 0), (0, 0), (0.5, 1.5), (tiny.wave((9, 12), 1.0), 0.7)]
    wanted = [pipe(photo(12, 9), *pair, **options).images[0] for pair in pairs]
    encodes = []
    pipe.vae.encoder.register_forward_hook(lambda *_: encodes.append(1))
    passes.clear()
    prediction = pipe.predict(photo(12, 9), **options)
    came = [pipe.decode(prediction, *pair) for pair in pairs]
    assert passes.count("pix") == passes.count("both") == len(passes) / 2 and len(encodes) == 1
    assert len(passes) == 2 or options == TILES
    assert all(map(np.array_equal, came, wanted))


def test_a_prediction_serves_every_output_and_color_fix_and_can_be_pickled(pipe):
    prediction = pickle.loads(
        pickle.dumps(pipe.predict(photo(mode="LA"), **SMALL, color_fix="none"))
    )
    assert isinstance(prediction, Prediction) and prediction.frame.output == (24, 18)
    before = [tensor.clone() for tensor in prediction.tensors]
    for output_type in ("pil", "np", "pt", "uint16", "latent"):
        wanted = pipe(
            photo(mode="LA"), 1, 0.3, **SMALL, color_fix="none", output_type=output_type
        ).images[0]
        assert np.array_equal(pipe.decode(prediction, 1, 0.3, output_type=output_type), wanted)
    wanted = pipe(photo(mode="LA"), **SMALL, color_fix="adain").images[0]
    assert np.array_equal(pipe.decode(prediction, color_fix="adain"), wanted)
    assert all(map(torch.equal, before, prediction.tensors))


def test_a_prediction_is_of_one_picture_and_takes_no_strengths(pipe):
    with pytest.raises(ValueError, match="predict takes one picture, 2 came"):
        pipe.predict([photo(), photo()])
    with pytest.raises(TypeError, match="there is no option 'lambda_pix'; there are upscale, "):
        pipe.predict(photo(), lambda_pix=1)
    prediction = pipe.predict(photo(), **SMALL)
    for options, said in (
        ({"color_fix": "nofix"}, "adain, wavelet, none"),
        ({"output_type": "jpeg"}, "pil, np"),
        ({"lambda_sem": np.zeros((12, 9)) + np.eye(12, 9)}, "a map of 9x12, the picture is 12x9"),
    ):
        with pytest.raises(ValueError, match=said):
            pipe.decode(prediction, **options)
