"""Show a model on a web page of this machine.

Drop a picture and type labels: the page shows their probabilities and, of the pictures in --in, the nearest. Only this
machine can open it, unless --host says otherwise. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging

from mmjax.commands.common import options
from mmjax.core.config import Between, ConfigError

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 10.0  # at the end, for what is being computed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument(
        "--model", metavar="SPEC", help="a run folder, or weights of others (default: the model that made --in)"
    )
    parser.add_argument("--in", dest="embeddings", metavar="DIR", help="what mmjax embed wrote: pictures to search")
    parser.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000; 0: a free one")
    parser.add_argument(
        "--max-mib", type=float, default=32.0, metavar="N", help="the largest file of a picture (default: 32)"
    )


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    options.check_ranges(args, port=Between(0, 65535), max_mib=Between(0.01, 1024))
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    from mmjax.commands.common.searching import open_searched
    from mmjax.inference.local_server import LocalServer
    from mmjax.inference.web_page import WebPage

    try:
        server = LocalServer(args.host, args.port)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"--host={args.host} --port={args.port}: cannot be listened at ({reason}); port 0 takes a free one"
        ) from None
    with server:
        if not server.loopback:
            logger.warning(
                f"--host={args.host}: everyone who reaches this machine can use the page; it has no password"
            )
        model, spec, searcher = open_searched(args.model, args.embeddings)
        page = WebPage(model, title=spec, searcher=searcher, max_bytes=int(args.max_mib * 2**20))
        server.publish(page.files(), page.actions(), max_bytes=page.max_body_bytes)
        print(f"{server.url}  (Ctrl-C ends)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    page.wait(_WAIT_SECONDS)
    return 0
