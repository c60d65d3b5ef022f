"""argv in, exit code out: what the codes mean, and the one wrapper that turns a failure into a line and a code."""

import argparse
import sys
import traceback
from collections.abc import Callable

from pisasr.errors import UsageError, explain, shown

OK, NOTHING_STARTED, WRONG_USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command whose failures are one line; the traceback is for --debug."""
    try:
        return run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(f"pisasr: {shown(explain(error))}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, UsageError) else NOTHING_STARTED
