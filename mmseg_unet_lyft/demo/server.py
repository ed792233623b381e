"""The demo's server: loopback by default, files of one folder only, no fetched addresses, no telemetry."""

import asyncio
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..compat import install_command
from ..errors import InputError

LOOPBACK = ('127.0.0.1', 'localhost')
_FIRST_PORT, _PORTS, _LAST_PORT = 7860, 100, 65535
_LONGEST_REQUEST = 1_000_000  # Bytes of a request other than an upload: the page sends names and numbers.
MOST_UPLOADED, MOST_KEPT = 200_000_000, 1_000_000_000  # Bytes of one upload, and of all files of visitors.
_UPLOAD_SECONDS = 600.0
AT_ONCE = 2  # Uploads, and requests of a kind: an image need not wait for a video.
EXAMPLES = 'examples'  # Their folder.
_FORWARDED = (b'x-forwarded-', b'forwarded', b'x-gradio-server')  # Headers that change the page's addresses.
_SHOWN = {'.png': 'image/png', '.mp4': 'video/mp4'}  # What the demo makes.
_FILE_POLICY = "default-src 'none'; sandbox"
# Gradio's page holds its settings as an inline script, and evaluates its templates.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)
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
        GRADIO_EXAMPLES_CACHE=str(folder / EXAMPLES),
        # Whose X-Forwarded-Proto the server itself believes.
        FORWARDED_ALLOW_IPS='',
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

    An InputError names a host that is not this machine's, or a port that is taken or out of range.
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
def serve(page: Any, folder: Path, host: str, port: int, trust_proxy: bool, **style: Any) -> Iterator[str]:
    """Serve a page, Gradio's Blocks, as long as the context is open, and yield its address.

    It is made within `private_gradio`; ``style`` are its ``css`` and ``theme``. Files are served from the
    folder alone, Gradio's own aside.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guards = [Middleware(Gate, folder=folder, trust_proxy=trust_proxy)]
    if host in LOOPBACK:
        # A page of another site whose name leads here must not talk to this one.
        guards.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
    page.queue(api_open=False, default_concurrency_limit=AT_ONCE, max_size=32)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inline=False,
            quiet=True,
            prevent_thread_lock=True,
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
            **style,
        )
        yield url
    finally:
        page.close(verbose=False)


class Gate:
    """ASGI middleware between visitors and Gradio: who may ask, what may be sent, and what is given back.

    - Requests of pages of other origins are refused; ``X-Forwarded-*`` count only if ``trust_proxy``.
    - Requests in which a file is an address, which Gradio would fetch, are refused.
    - Uploads are bounded in size, number and time, replace the oldest files, and are never given back.
    - Of the other files, PNG and MP4 are shown; all else is only saved by browsers.
    """

    def __init__(self, app: Any, folder: Path, trust_proxy: bool) -> None:
        self._app, self._folder, self._trust_proxy = app, folder, trust_proxy
        self._uploaded: set[Path] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        path = scope['path']
        file = re.search('/file[=/](.+)', path)
        reason = self._reason(scope, file and file[1])
        if not self._trust_proxy:
            kept = [(name, value) for name, value in scope['headers'] if not name.startswith(_FORWARDED)]
            scope = dict(scope, headers=kept)
        send = _safely(send, file and file[1])
        if reason:
            await _refuse(scope, receive, send, reason, 403)
        elif scope['method'] != 'POST':
            await self._app(scope, receive, send)
        elif path.endswith('/upload'):
            await self._upload(scope, receive, send)
        elif (body := await _body(receive)) is None:
            await _refuse(scope, receive, send, 'request too long', 413)
        elif names_address(body):
            await _refuse(scope, receive, send, 'takes no addresses', 403)
        else:
            given = iter([dict(type='http.request', body=body, more_body=False)])

            async def again() -> dict:
                return next(given, None) or await receive()

            await self._app(scope, again, send)

    def _reason(self, scope: dict, file: str | None) -> str | None:
        """Why a request is forbidden, by its headers and its path; None if it is not."""
        from starlette.datastructures import Headers

        path, headers = scope['path'], Headers(scope=scope)
        host, origin = headers.get('host'), headers.get('origin')
        if self._trust_proxy:
            host = headers.get('x-forwarded-host', host)
        if origin is not None and origin.partition('://')[2] != host:
            return 'a page of another origin asks'
        if '://' in path or path.startswith(_CLOSED):
            return 'takes no addresses'
        is_upload = file is not None and Path(file).resolve() in self._uploaded
        return 'uploads are not given back' if is_upload else None

    async def _upload(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass an upload on within its limits, and note which files it made."""
        from starlette.requests import ClientDisconnect

        left, answer = MOST_UPLOADED, bytearray()

        async def bounded() -> dict:
            nonlocal left
            message = await receive()
            left -= len(message.get('body', b''))
            return message if left >= 0 else dict(type='http.disconnect')

        async def noted(message: dict) -> None:
            answer.extend(message.get('body', b''))
            # Complete, or not JSON yet; noted before the visitor knows the paths.
            with suppress(ValueError, TypeError):
                self._uploaded |= {Path(one).resolve() for one in json.loads(answer)}
            await send(message)

        async def passed() -> None:
            async with self._slots:
                # Room for all that may come at once, this one included.
                await asyncio.to_thread(make_room, self._folder, AT_ONCE * MOST_UPLOADED)
                await self._app(scope, bounded, noted)

        try:
            await asyncio.wait_for(passed(), _UPLOAD_SECONDS)
        except (ClientDisconnect, asyncio.TimeoutError):
            await _refuse(scope, receive, send, f'over {MOST_UPLOADED // 1_000_000} MB, or too slow', 413)


async def _refuse(scope: dict, receive: Any, send: Any, reason: str, status: int) -> None:
    from starlette.responses import PlainTextResponse

    await PlainTextResponse(reason, status)(scope, receive, send)


def _safely(send: Any, file: str | None = None) -> Any:
    """``send`` with headers by which a browser runs nothing that is not the page's own."""
    from starlette.datastructures import MutableHeaders

    async def sent(message: dict) -> None:
        if message['type'] == 'http.response.start':
            headers = MutableHeaders(scope=message)
            headers['X-Content-Type-Options'] = 'nosniff'
            headers['Content-Security-Policy'] = _PAGE_POLICY if file is None else _FILE_POLICY
            if file is not None and message['status'] < 400:
                kind = _SHOWN.get(Path(file).suffix.lower())
                headers['Content-Type'] = kind or 'application/octet-stream'
                headers['Content-Disposition'] = 'inline' if kind else 'attachment'
        await send(message)

    return sent


def make_room(folder: Path, wanted: int) -> None:
    """Delete the oldest files of visitors until ``wanted`` bytes fit into what is kept in all."""
    found = []
    for path in folder.rglob('*'):
        # Another request may delete it meanwhile.
        with suppress(OSError):
            if path.is_file() and folder / EXAMPLES not in path.parents:
                found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total + wanted <= MOST_KEPT:
            return
        with suppress(OSError):
            path.unlink()
        total -= size


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

    def is_found(value: Any) -> bool:
        is_file = isinstance(value, dict) and '://' in str(value.get('path', ''))
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return is_file or any(map(is_found, parts))

    try:
        return is_found(json.loads(body or b'null'))
    except (ValueError, RecursionError):
        return True
