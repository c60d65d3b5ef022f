"""Before training: photos that show the same, by a hash that hardly changes under compression, scaling and light.

Our own twenty lines and not imagehash's phash: that brings SciPy and PyWavelets, and MAX_DISTANCE was measured on this.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

MAX_DISTANCE = 40  # of 255 bits. Of 469 tiles of 40 photos no two are nearer than 86; half the size moves about 2 bits
SIDE, KEPT = 64, 16
BAND = 16  # bits


def perceptual_hash(picture: Image.Image) -> int:
    """255 bits: which of the 16 x 16 lowest frequencies of the picture, shrunk to 64 x 64, are above their median.

    A mirrored or turned copy has another hash: for training it is another picture. Low frequencies come first.
    """
    box = min(picture.size) >= SIDE
    small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX if box else Image.Resampling.BICUBIC)
    k = np.arange(SIDE)
    cosines = np.cos(np.pi * (k[None] + 0.5) * k[:KEPT, None] / SIDE)
    spectrum = (cosines @ np.asarray(small, np.float64) @ cosines.T).ravel()
    order = np.argsort(np.add.outer(k[:KEPT], k[:KEPT]).ravel(), kind="stable")[1:]  # without the mean
    low_first = spectrum[order]
    return sum(1 << i for i, above in enumerate(low_first > np.median(low_first)) if above)


def find_near_duplicates(hashes: Sequence[int], max_distance: int = MAX_DISTANCE) -> dict[int, int]:
    """Which places show the same as an earlier one that stays: {place: the earlier place}. Put the best photos first.

    Only hashes that share one of sixteen bands of 16 bits are compared, so the time grows about linearly with their
    number; of pairs at distance 20 this misses fewer than one in a hundred even when any bit may differ, and those that
    differ little differ in the high frequencies.
    """
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    near = {}
    for place, value in enumerate(hashes):
        bands = [(i, value >> i & 0xFFFF) for i in range(0, KEPT * KEPT, BAND)]
        rivals = sorted({rival for band in bands for rival in buckets[band]})
        same = next((rival for rival in rivals if (hashes[rival] ^ value).bit_count() <= max_distance), None)
        if same is None:
            for band in bands:
                buckets[band].append(place)
        else:
            near[place] = same
    return near
