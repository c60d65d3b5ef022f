"""Before training: how good a photo is as a target, from 0 to 1, by what is measured on its luma
without a network.

Four things spoil a high-quality photo, and each is measured where it shows:

    sharpness   how steep the edges are, on the patches where they are steepest: a portrait before a soft background is
                as sharp as its face
    noise       the standard deviation of what no edge explains, on the flattest patches
    blockiness  how much more the luma jumps every eight pixels than elsewhere: JPEG
    flatness    the share of patches without an edge that stands out of the noise: sky, walls, soft backgrounds

and each becomes a factor between 0 and 1. The score is their weighted geometric mean, so that one
bad one spoils a photo. Colour is not looked at, and neither is what the photo shows. Detail near
the pixel and noise look alike to these filters: a photo that is texture from edge to edge (grass)
is taken for a noisy one.
"""

from dataclasses import asdict, dataclass

import numpy as np

VERSION = (
    1  # of what is measured and of the curves below; scores of another version can't be compared
)
PATCH = 16  # px
MIN_SLOPE = (
    4.0  # levels a px, after smoothing: what is flatter is no edge but what JPEG and grain leave
)
SLOPE_OF_NOISE = (
    2.0  # that many times the noise; the steepest place of a patch of pure noise has half of it
)
RELIEF = 0.25  # an edge is at least so steep, compared with the steepest of its picture
FINE, COARSE = 0.5, 1.2  # px of smoothing under which the slopes of edges are compared
MIN_SIDE = 2 * PATCH  # px; nothing smaller is scored

# value at which a factor is one half, the steepness of the fall, the weight of the factor
CURVES = {
    "blur": (1.5, 2.0, 0.45),
    "noise": (4.0, 2.0, 0.25),
    "blockiness": (1.4, 2.5, 0.20),
    "flatness": (0.9, 3.0, 0.10),
}


@dataclass(frozen=True)
class Quality:
    """What was measured; every number is better when it is lower."""

    blur: float  # px: the standard deviation of the Gaussian that would have made the sharpest tenth of the edges
    noise: float  # grey levels of 255
    blockiness: float  # by which part jumps on the 8-px grid exceed the others; 0 is none
    flatness: float  # share of patches without an edge

    @property
    def factors(self) -> dict[str, float]:
        """Each measurement as a number from 1 (faultless) to 0."""
        return {
            name: 1 / (1 + (value / CURVES[name][0]) ** CURVES[name][1])
            for name, value in asdict(self).items()
        }

    @property
    def score(self) -> float:
        """The weighted geometric mean of the factors."""
        return float(np.prod([factor ** CURVES[name][2] for name, factor in self.factors.items()]))


def measure(luma: np.ndarray) -> Quality:
    """Measure a photo at its own size: luma [H, W] in [0, 255], at least MIN_SIDE on each side."""
    if min(luma.shape) < MIN_SIDE:
        raise ValueError(
            f"a picture of {luma.shape[1]}x{luma.shape[0]} can't be scored; wanted {MIN_SIDE} px a side"
        )
    luma = np.ascontiguousarray(luma, dtype=np.float32)
    noise = measure_noise(luma)
    blur, flatness = measure_edges(luma, noise)
    return Quality(blur, noise, measure_blockiness(luma), flatness)


def measure_edges(luma: np.ndarray, noise: float) -> tuple[float, float]:
    """How wide the edges are, in px of a Gaussian's standard deviation, and the share of patches
    without any.

    Each patch has one, its steepest place, if it stands out of the noise; the sharpest tenth of
    them count. A step blurred by s has a slope of 1 / s; smoothed by c before, of 1 / sqrt(s^2 +
    c^2). The slopes after two smoothings a < b give sqrt(s^2 + a^2) (the idea is Zhuo and Sim's,
    Pattern Recognition 44, 2011), which is returned: the smoothing by a keeps noise out, and a step
    without any blur is a px wide. Finer texture comes out below a. A picture without a single edge
    has the width of a patch.
    """
    a, b = FINE, COARSE
    fine, coarse = patches(slope(smooth(luma, a))), patches(slope(smooth(luma, b)))
    peak = np.argmax(coarse, axis=1)[:, None]
    fine, coarse = (np.take_along_axis(x, peak, axis=1)[:, 0] for x in (fine, coarse))
    visible = coarse > max(MIN_SLOPE, SLOPE_OF_NOISE * noise)
    if not visible.any():
        return float(PATCH), 1.0
    edges = visible & (
        coarse > RELIEF * np.quantile(coarse, 0.99)
    )  # no soft shade beside the steepest edges
    steeper = np.maximum((fine[edges] / coarse[edges]) ** 2 - 1, 1e-6)
    widths = np.minimum(np.sqrt((b**2 - a**2) / steeper), PATCH)
    return float(np.quantile(widths, 0.1)), float(1 - visible.mean())


def measure_noise(luma: np.ndarray) -> float:
    """Standard deviation of the noise in grey levels: the flattest tenth of the patches that are
    not clipped.

    The filter is zero on planes and on straight edges along the axes (Immerkaer, CVIU 64, 1996).
    """
    rows = luma[:-2] - 2 * luma[1:-1] + luma[2:]
    residue = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    spread = np.abs(patches(residue)).mean(axis=1) * (np.sqrt(np.pi / 2) / 6)
    level = patches(luma[1:-1, 1:-1]).mean(axis=1)
    open_ones = spread[(level > 8) & (level < 247)]
    return float(np.quantile(open_ones if open_ones.size else spread, 0.1))


def measure_blockiness(luma: np.ndarray) -> float:
    """By which part the luma jumps more along an 8-px grid than beside it, at whatever offset the
    grid has; 0 is none.

    A jump is what the steps on either side don't explain, cut at 16 levels so that edges of the
    scene don't count more.
    """
    excess = []
    for picture in (luma, luma.T):
        step = np.diff(picture, axis=1)
        jump = np.abs(step[:, 1:-1] - (step[:, :-2] + step[:, 2:]) / 2)
        columns = np.minimum(jump, 16).mean(axis=0)
        phases = np.array([columns[offset::8].mean() for offset in range(8)])
        excess.append(phases.max() / (np.median(phases) + 0.05) - 1)
    return float(max(0.0, np.mean(excess)))


def patches(x: np.ndarray) -> np.ndarray:
    """[H, W] cut into [N, PATCH * PATCH]; what is left over at the right and below is left out."""
    rows, columns = (side // PATCH for side in x.shape)
    cut = x[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH)
    return cut.swapaxes(1, 2).reshape(rows * columns, PATCH * PATCH)


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing of [H, W], the border mirrored."""
    radius = round(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    for weights in (kernel / kernel.sum(),) * 2:
        padded = np.pad(x, ((0, 0), (radius, radius)), mode="reflect")
        x = np.asarray(
            sum(np.float32(w) * padded[:, i : i + x.shape[1]] for i, w in enumerate(weights))
        ).T
    return x


def slope(x: np.ndarray) -> np.ndarray:
    """Length of the gradient of [H, W], by central differences; [H, W], zero on the border."""
    length = np.zeros_like(x)
    length[1:-1, 1:-1] = np.hypot(x[1:-1, 2:] - x[1:-1, :-2], x[2:, 1:-1] - x[:-2, 1:-1]) / 2
    return length
