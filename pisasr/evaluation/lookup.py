"""Score: where the files that metrics need are looked for. Nothing is downloaded here and nothing
found is imported.
"""

from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from pisasr.errors import PisasrError


class MetricUnavailable(PisasrError):
    """A scorer lacks a package or a file. One line that says what to install or where to put it."""


def find_weights(pattern: str, folder: Path | None, packages: dict[str, str], advice: str) -> Path:
    """The file matching `pattern` in `folder` or else inside an installed package.

    packages maps an import name to the folder inside it. The package is located, not imported:
    basicsr and iqa cannot be imported without a working torchvision, and reading one file of theirs
    needs no code.
    """
    if folder and not folder.is_dir():
        raise MetricUnavailable(
            f"no folder at {folder}, where {pattern} is to be; correct it, or leave --weights out"
        )
    places = [folder] if folder else []
    for package, inside in packages.items():
        spec = find_spec(package)
        places += (
            [Path(place) / inside for place in (spec.submodule_search_locations or [])]
            if spec
            else []
        )
    for place in places:
        if found := sorted(place.glob(pattern)):
            return found[0]
    raise MetricUnavailable(
        f"{pattern} not found: {advice}, or put the file into a folder and give --weights FOLDER"
    )


def place_of(url: str, inside: str) -> Path:
    """Where torch's hub keeps the file of an address, once it was fetched or put there by hand."""
    from torch.hub import get_dir

    return Path(get_dir(), inside, quote(url.rsplit("/", 1)[1]))  # pyiqa keeps a + as %2B


def choose_device(wanted: str | None = None) -> str:
    """Where a network runs: as wanted, else on this process' GPU (accelerate makes it the current
    one), else the CPU.

    MetricUnavailable for a GPU that is not there.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if wanted and wanted.startswith("cuda") and not has_cuda:
        raise MetricUnavailable(f"--device {wanted} is not available to this PyTorch; use another")
    return wanted or ("cuda" if has_cuda else "cpu")
