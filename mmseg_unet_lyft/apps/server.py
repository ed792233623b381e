"""The demo's server: on loopback, with its own folder and no other, without addresses and telemetry."""

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
MOST_UPLOADED = '200mb'
_FIRST_PORT, _PORTS, _LAST_PORT = 7860, 100, 65535
_LONGEST_REQUEST = 1_000_000  # Bytes of a request that is no upload: the page sends names and numbers.
_DEEPEST = 50
# Gradio's, which the page does not use: it would run ffmpeg on what is sent.
_CLOSED = ('/gradio_api/process_recording', '/gradio_api/proxy=')


def require_gradio() -> None:
    """Raise an InputError that names the remedy unless Gradio is installed."""
    if find_spec('gradio') is None:
        raise InputError(f'the demo needs gradio; install with: {install_command("demo")}')


@contextmanager
def private_gradio(folder: Path) -> Iterator[None]:
    """Gradio's surroundings while the page is made and served: no telemetry, files in one folder.

    Args:
        folder: Where uploads and results go.
    """
    outside = os.environ.get('NO_PROXY') or os.environ.get('no_proxy') or ''
    wanted = dict(
        GRADIO_ANALYTICS_ENABLED='False',
        HF_HUB_DISABLE_TELEMETRY='1',
        GRADIO_TEMP_DIR=str(folder),
        GRADIO_EXAMPLES_CACHE=str(folder / 'examples'),
        # Gradio asks its own server whether it is there, and would ask a proxy.
        NO_PROXY=','.join(filter(None, (outside, *LOOPBACK))),
    )
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def free_port(host: str, port: int | None) -> int:
    """The port to listen on: the one that is asked for, or the first free one from 7860 on.

    Raises:
        InputError: If the host is none of this machine's, or the port is taken or none.
    """
    if port is not None and not 1 <= port <= _LAST_PORT:
        raise InputError(f'--port {port}: give 1 to {_LAST_PORT}')
    reason = ''
    for candidate in [port] if port else range(_FIRST_PORT, _FIRST_PORT + _PORTS):
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            with socket.create_server((host, candidate), family=family):
                return candidate
        # UnicodeError: of a host's name that no name server could be asked for.
        except (OSError, UnicodeError) as error:
            reason = getattr(error, 'strerror', None) or str(error)
    raise InputError(
        f'--host {host} --port {port or _FIRST_PORT}: cannot be listened on ({reason}); name another port, '
        'or an address of this machine'
    )


@contextmanager
def serve(page: gradio.Blocks, folder: Path, host: str, port: int, **looks: Any) -> Iterator[str]:
    """Serve a page as long as the context is open.

    Args:
        page: The page, made within `private_gradio`.
        folder: The only one whose files are served, Gradio's own pages aside.
        host: Address to listen on.
        port: As from `free_port`.
        **looks: ``css`` and ``theme`` of the page.

    Yields:
        The page's address.
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
            inbrowser=False,
            inline=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=False,
            allowed_paths=[str(folder)],
            max_file_size=MOST_UPLOADED,
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
            **looks,
        )
        yield url
    finally:
        page.close(verbose=False)


class OwnFilesOnly:
    """ASGI middleware that refuses requests in which a file is an address.

    Gradio would fetch it: by ``file=https://...``, and where an event's data has it in a file's place.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it."""
        from starlette.responses import PlainTextResponse

        path = scope.get('path', '')
        if scope['type'] != 'http' or (scope['method'] == 'POST' and path.endswith('/upload')):
            await self._app(scope, receive, send)
            return
        if '://' in path or path.startswith(_CLOSED):
            await PlainTextResponse('takes no addresses', 403)(scope, receive, send)
            return
        if scope['method'] != 'POST':
            await self._app(scope, receive, send)
            return
        body = await _body(receive)
        if body is None or names_address(body):
            reason = 'request too long' if body is None else 'takes no addresses'
            await PlainTextResponse(reason, 413 if body is None else 403)(scope, receive, send)
            return
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
    """Whether in a request's JSON a file's path is no path; also if it is no JSON, or nested deeply."""
    try:
        return _holds_address(json.loads(body or b'null'), _DEEPEST)
    except (ValueError, RecursionError):
        return True


def _holds_address(value: Any, depth: int) -> bool:
    if not depth:
        return True
    if isinstance(value, list):
        return any(_holds_address(one, depth - 1) for one in value)
    if not isinstance(value, dict):
        return False
    if '://' in str(value.get('path', '')):
        return True
    return any(_holds_address(one, depth - 1) for one in value.values())
