"""Serve the page on one machine: loopback unless asked, no use is reported, nothing is fetched from a network."""

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import fastapi
import gradio as gr
import uvicorn
from fastapi.responses import FileResponse

from minisd._internal import validation
from minisd.app.models import Models
from minisd.app.page import CSS, build, theme
from minisd.app.sources import linked_files
from minisd.errors import InputError

LARGEST_UPLOAD = "50mb"  # of a visitor
LARGEST_UPLOAD_HERE = "8gb"  # from the machine itself: official weights
TYPES = {".py": "text/plain; charset=utf-8", ".ipynb": "application/x-ipynb+json"}


def serve(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str | None = None,
    ready: Callable[[str], object] = print,
) -> None:
    """Serve the page until Ctrl-C. ready: called with the address once visitors can come; port 0: any free one.

    Raises InputError for a host or port that cannot be used, and the classes of minisd.errors for a model that does not
    load.
    """
    with listen(host, port) as listener:
        here = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
        app = application(Models(model, device), LARGEST_UPLOAD_HERE if here else LARGEST_UPLOAD)
        ready(_address(listener))
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections. Raises InputError."""
    validation.whole_number(port, "port", 0, 65535)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} of {host} is in use; choose another one, or 0 for any free one.") from None
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"host {host!r}, port {port} cannot be listened on ({reason}); choose others.") from None


def application(models: Models, largest_upload: str = LARGEST_UPLOAD) -> fastapi.FastAPI:
    """The page, and the files that it links to."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/source/{path:path}")
    def source(path: str) -> Any:
        file = linked_files().get(f"source/{path}")
        if file is None:
            raise fastapi.HTTPException(404)
        return FileResponse(file, media_type=TYPES[file.suffix], headers={"X-Content-Type-Options": "nosniff"})

    return gr.mount_gradio_app(
        app,
        build(models),
        "/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        show_error=False,
        max_file_size=largest_upload,
        theme=theme(),
        css_paths=[CSS],
    )


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
