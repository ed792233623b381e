"""The demo's server: loopback by default, files of one folder only, no fetched addresses, no telemetry."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compat import install_command
from ..errors import InputError

if TYPE_CHECKING:
    import gradio

LOOPBACK = ('127.0.0.1', 'localhost')
_FIRST_PORT, _PORTS, _LAST_PORT = 7860, 100, 65535
_LONGEST_REQUEST = 1_000_000  # Bytes of a request other than an upload: the page sends names and numbers.
_DEEPEST = 50
# Gradio's routes that the page does not use: one runs ffmpeg on what is sent, one fetches addresses.
_CLOSED = ('/gradio_api/process_recording', '/gradio_api/proxy=')


def require_gradio() -> None:
    """Raise an InputError that names the remedy unless Gradio is installed."""
    if find_spec('gradio') is None:
        raise InputError(f'the demo needs gradio; install with: {install_command("demo")}')


@contextmanager
def private_gradio(folder: Path) -> Iterator[None]:
    """Gradio's environment while the page is made and served: no telemetry, all files in a folder."""
    no_proxy = os.environ.get('NO_PROXY') or os.environ.get('no_proxy') or ''
    wanted = dict(
        GRADIO_ANALYTICS_ENABLED='False',
        HF_HUB_DISABLE_TELEMETRY='1',
        GRADIO_TEMP_DIR=str(folder),
        GRADIO_EXAMPLES_CACHE=str(folder / 'examples'),
        # Gradio checks whether its own server answers, and would ask a proxy.
        NO_PROXY=','.join(filter(None, (no_proxy, *LOOPBACK))),
    )
    before = {name: os.environ.pop(name) for name in wanted if name in os.environ}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            del os.environ[name]
        os.environ.update(before)


def free_port(host: str, port: int | None) -> int:
    """The port to listen on: the one that is asked for, or the first free one from 7860 on.

    Raises:
        InputError: If the host is not an address of this machine, or the port is taken or out of range.
    """
    if port is not None and not 1 <= port <= _LAST_PORT:
        raise InputError(f'--port {port}: give 1 to {_LAST_PORT}')
    reason = ''
    for candidate in [port] if port else range(_FIRST_PORT, _FIRST_PORT + _PORTS):
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            with socket.create_server((host, candidate), family=family):
                return candidate
        # UnicodeError: a label of the host's name is too long or empty.
        except (OSError, UnicodeError) as error:
            reason = getattr(error, 'strerror', None) or str(error)
    raise InputError(
        f'--host {host} --port {port or _FIRST_PORT}: cannot be listened on ({reason}); name another port, '
        'or an address of this machine'
    )


@contextmanager
def serve(page: gradio.Blocks, folder: Path, host: str, port: int, **style: Any) -> Iterator[str]:
    """Serve a page as long as the context is open, and yield its address.

    Args:
        page: The page, made within `private_gradio`.
        folder: The only one whose files are served, Gradio's own pages aside.
        host: Address to listen on.
        port: As from `free_port`.
        **style: ``css`` and ``theme`` of the page.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guards = [Middleware(OwnFilesOnly)]
    if host in LOOPBACK:
        # A page of another site whose name leads here must not talk to this one.
        guards.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
    page.queue(api_open=False, default_concurrency_limit=1, max_size=32)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inline=False,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(folder)],
            max_file_size='200mb',
            state_session_capacity=16,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            run_history=False,
            num_workers=0,
            root_path='',
            footer_links=['settings'],
            app_kwargs=dict(middleware=guards, docs_url=None, redoc_url=None),
            **style,
        )
        yield url
    finally:
        page.close(verbose=False)


class OwnFilesOnly:
    """ASGI middleware that refuses requests in which a file is an address, which Gradio would fetch.

    Gradio does so for ``file=https://...``, and where an event's data has an address in a file's place.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        from starlette.responses import PlainTextResponse

        path, method = scope.get('path', ''), scope.get('method')
        refused = PlainTextResponse('takes no addresses', 403)
        if scope['type'] != 'http' or (method == 'POST' and path.endswith('/upload')):
            await self._app(scope, receive, send)
        elif '://' in path or path.startswith(_CLOSED):
            await refused(scope, receive, send)
        elif method != 'POST':
            await self._app(scope, receive, send)
        elif (body := await _body(receive)) is None:
            await PlainTextResponse('request too long', 413)(scope, receive, send)
        elif names_address(body):
            await refused(scope, receive, send)
        else:
            given = iter([dict(type='http.request', body=body, more_body=False)])

            async def again() -> dict:
                return next(given, None) or await receive()

            await self._app(scope, again, send)


async def _body(receive: Any) -> bytes | None:
    """A request's body; None if it is too long."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get('body', b'')
        if len(body) > _LONGEST_REQUEST:
            return None
        if not message.get('more_body'):
            return bytes(body)


def names_address(body: bytes) -> bool:
    """Whether a request's JSON has an address as a file's path; True also if it is not JSON, or too deep."""

    def is_found(value: Any, depth: int) -> bool:
        is_file = isinstance(value, dict) and '://' in str(value.get('path', ''))
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return not depth or is_file or any(is_found(one, depth - 1) for one in parts)

    try:
        return is_found(json.loads(body or b'null'), _DEEPEST)
    except (ValueError, RecursionError):
        return True
