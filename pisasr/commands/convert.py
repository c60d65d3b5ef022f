"""`pisasr convert`: the published checkpoint, a pickle, to safetensors."""

import argparse
from pathlib import Path

from pisasr.commands.batch import check_output
from pisasr.commands.options import command_parser
from pisasr.errors import guarded, safe_text


def convert(argv: list[str]) -> int:
    """Turn the published checkpoint into safetensors: `pisasr convert --help`."""
    about = "Turn the published pisa_sr.pkl into OUT/pix.safetensors and OUT/sem.safetensors."
    parser = command_parser("pisasr convert", about)
    source = "pisa_sr.pkl; read without running any code in it"
    parser.add_argument("checkpoint", type=Path, help=source)
    target = "a folder, to be given to infer as --adapters"
    parser.add_argument("output", type=Path, metavar="OUT", help=target)
    args = parser.parse_args(argv)
    return guarded(lambda: _convert(args), args.debug)


def _convert(args: argparse.Namespace) -> None:
    from pisasr.models.weights import convert_release, save_adapter

    adapters = convert_release(args.checkpoint)
    check_output(args.output)
    for adapter in adapters:
        path = args.output / f"{adapter.name}.safetensors"
        save_adapter(path, adapter)
        print(
            f"{safe_text(path)}: {adapter.name}, rank {adapter.rank}, {len(adapter.targets)} layers"
        )
