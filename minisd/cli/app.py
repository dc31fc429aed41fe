"""`minisd app`: serve the demos as a web page, or write the folder of a page to publish."""

import argparse
import importlib.util

from minisd.cli.output import say
from minisd.errors import InputError


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or write the folder. Raises InputError where Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError('the page needs Gradio, which is not installed; run `pip install "minisd[app]"`.')
    if args.export is not None:
        from minisd.app.export import export

        export(args.export, args.model, args.overwrite)
        say(f"{args.export}  publish it with `hf upload USER/NAME {args.export} --repo-type space`")
        return 0
    from minisd.app.server import serve

    serve(args.model, args.host, args.port, args.device, lambda address: say(f"{address}  end with Ctrl-C"))
    return 0
