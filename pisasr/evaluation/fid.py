"""Score: FID, how far one set's features lie from another's (Heusel et al. 2017, clean-fid's
resizing).

Features are taken picture by picture, so that a set can be shared among processes, continued, or
lack pictures that the table leaves out. The extractor is any function from a picture to a vector;
InceptionV3 is the published one.
"""

from typing import Any

import numpy as np
from PIL import Image

from pisasr.evaluation.deep import load_network
from pisasr.evaluation.lookup import choose_device
from pisasr.evaluation.metrics import Extractor

INCEPTION_SIDE = 299


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The Fréchet distance of the Gaussians with the mean and covariance of x [n, d] and y [m, d].

        |mean_x - mean_y|^2 + tr(C_x) + tr(C_y) - 2 tr((C_x C_y)^(1/2))

    With C = A^T A, A the centred features over sqrt(n - 1), the last trace is the sum of the
    singular values of A_x A_y^T: exact for any number of pictures, where a matrix root of the d x d
    product needs full rank. NaN for a set of fewer than two pictures.
    """
    if min(len(x), len(y)) < 2:
        return float("nan")
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    a_x, a_y = (x - mean_x) / np.sqrt(len(x) - 1), (y - mean_y) / np.sqrt(len(y) - 1)
    root = np.linalg.svd(a_x @ a_y.T, compute_uv=False).sum()
    distance = np.sum((mean_x - mean_y) ** 2) + np.sum(a_x**2) + np.sum(a_y**2) - 2 * root
    return float(max(distance, 0.0))


def resize_clean(picture: np.ndarray, side: int = INCEPTION_SIDE) -> np.ndarray:
    """float32 [side, side, 3] in [0, 255]: Pillow's antialiased bicubic, each channel in floats,
    not rounded.
    """
    channels = (Image.fromarray(picture[..., k].astype(np.float32)) for k in range(3))
    resized = [
        np.asarray(channel.resize((side, side), Image.Resampling.BICUBIC)) for channel in channels
    ]
    return np.stack(resized, axis=-1).clip(0, 255)


def load_inception(device: str | None = None) -> Extractor:
    """pool3 of the InceptionV3 that FID was defined with: 2048 features. MetricUnavailable without
    its weights.
    """
    place = choose_device(device)

    def create(name: str) -> Any:
        from pyiqa.archs.inception import InceptionV3

        block = InceptionV3.BLOCK_INDEX_BY_DIM[2048]
        return InceptionV3(output_blocks=[block]).eval().to(place)

    network = load_network("fid", create)

    def extract(picture: np.ndarray) -> np.ndarray:
        import torch

        x = torch.from_numpy((resize_clean(picture) - 128) / 128).permute(2, 0, 1)[None]
        with torch.inference_mode():
            return network(x.to(place), False, False)[0].flatten().cpu().numpy()

    return extract
