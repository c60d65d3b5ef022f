"""`pisasr convert`: weights of others, which may be pickles, to what the pipeline reads."""

import argparse
from pathlib import Path

from pisasr.commands.batch import check_output
from pisasr.commands.options import command_parser
from pisasr.errors import guarded, safe_text

NETWORKS = (".pth", ".safetensors", ".bin")


def convert(argv: list[str]) -> int:
    """Turn the published checkpoint, or an x4 RRDBNet, into safetensors."""
    about = (
        "Turn the published pisa_sr.pkl into OUT/pix.safetensors and OUT/sem.safetensors, "
        "or an x4 RRDBNet (.pth, .safetensors, ncnn's .bin and .param) into a base for adapters."
    )
    parser = command_parser("pisasr convert", about)
    source = "read without running any code in it"
    parser.add_argument("file", type=Path, metavar="FILE", help=source)
    target = "a folder, to be given to infer as --adapters, or to train as the base"
    parser.add_argument("output", type=Path, metavar="OUT", help=target)
    args = parser.parse_args(argv)
    return guarded(lambda: _convert(args), args.debug)


def _convert(args: argparse.Namespace) -> None:
    if args.file.suffix in NETWORKS:
        _convert_network(args.file, args.output)
        return
    from pisasr.models.weights import convert_release, save_adapter

    adapters = convert_release(args.file)
    check_output(args.output)
    for adapter in adapters:
        path = args.output / f"{adapter.name}.safetensors"
        save_adapter(path, adapter)
        print(
            f"{safe_text(path)}: {adapter.name}, rank {adapter.rank}, {len(adapter.targets)} layers"
        )


def _convert_network(file: Path, output: Path) -> None:
    from pisasr.models.rrdbnet_files import read_network, save_base

    network = read_network(file)
    check_output(output)
    save_base(network, output)
    print(f"{safe_text(output)}: a base, RRDBNet of {network.config.blocks} blocks")
