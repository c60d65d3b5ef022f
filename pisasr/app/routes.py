"""What viewer.js asks the server for, and who may ask at all."""

import asyncio
import json
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool as in_thread
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from pisasr.app.session import MAX_MASK_BYTES, Box, OpenPicture, Session, Settings, read_mask
from pisasr.errors import PisasrError, explain

EXAMPLES = Path(__file__).parent / "examples"
MAX_UPLOAD_MB = 64
MAX_UPLOADS_MB = 2048  # of all that gradio holds for scripts and batches
LOGINS_A_MINUTE = 5  # that fail
PLAIN = {"content-encoding": "identity"}  # else gradio compresses: a second for what stays here
BYTES, MAX_SEEN_PX = "application/octet-stream", 16_000_000
Handler = Callable[[Request], Awaitable[Response]]


class Routes:
    """Answer below /pisasr/; a picture's key, which can't be guessed, is the right to see it."""

    def __init__(self, session: Session):
        self.session = session

    def find(self, request: Request) -> OpenPicture:
        """The picture of the address."""
        return self.session.store.get(request.path_params["key"])

    async def open(self, request: Request) -> Response:
        """Open what is sent, or the photo of a key at other settings."""
        query, open_it = request.query_params, self.session.open
        settings = Settings(**json.loads(query.get("settings", "{}")))
        if key := query.get("key"):
            former = self.session.store.get(key)
            opened = await in_thread(open_it, former.picture, settings, former.name)
            self.session.store.drop(key)
        else:
            with TemporaryDirectory(prefix="upload-", dir=self.session.folder) as folder:
                path = Path(folder) / "photo"
                with path.open("wb") as file:
                    async for chunk in request.stream():
                        file.write(chunk)
                        if file.tell() > MAX_UPLOAD_MB * 10**6:
                            raise PisasrError(f"the file is larger than {MAX_UPLOAD_MB} MB")
                name = Path(query.get("name", "photo")).name[:200]
                opened = await in_thread(open_it, path, settings, name)
        return JSONResponse(about(self.session, opened))

    async def show(self, request: Request) -> Response:
        """Say what there is to know of an open picture."""
        return JSONResponse(about(self.session, self.find(request)))

    async def close(self, request: Request) -> Response:
        """Close a picture."""
        self.session.store.drop(request.path_params["key"])
        return Response(status_code=204)

    async def look(self, request: Request) -> Response:
        """Stream the news of a look, a line each; the work ends where the stream does."""
        opened, (values, *_) = self.find(request), await wish_of(request)
        job = self.session.start(opened, Box(*map(int, values["view"])), bool(values.get("whole")))

        async def news(known: int) -> AsyncIterator[str]:  # boxes that the browser has
            try:
                while not job.is_over or job.news:
                    while job.news:
                        fresh = opened.boxes[known:]
                        known += len(fresh)
                        yield json.dumps(job.news.popleft() | {"boxes": fresh}) + "\n"
                    await asyncio.sleep(0.05)
            finally:  # also where the browser is gone
                job.is_stopped = True

        return StreamingResponse(news(int(values.get("known", 0))), headers=PLAIN)

    async def planes(self, request: Request) -> Response:
        """Give the planes of a box of the result, or of its small picture."""
        opened = self.find(request)
        box = Box(*(int(request.query_params[name]) for name in "xywh"))
        if box.w * box.h > MAX_SEEN_PX:
            raise PisasrError("so much isn't seen at once; ask for less")
        small = request.query_params.get("small")
        found = opened.small[:, *box.slices] if small else await in_thread(opened.read, box)
        return Response(found.tobytes(), headers=PLAIN, media_type=BYTES)

    async def exact(self, request: Request) -> Response:
        """Decode what is seen, where the planes only stand in for it: RGB, its box in a header."""
        opened, (_, *wish) = self.find(request), await wish_of(request)
        box, pixels = await in_thread(self.session.exact, opened, *wish)
        headers = PLAIN | {"x-box": json.dumps(box)}
        return Response(pixels.tobytes(), headers=headers, media_type=BYTES)

    async def save(self, request: Request) -> Response:
        """Give the whole result as a file, which is deleted once it is sent."""
        opened, (_, settings, mask) = self.find(request), await wish_of(request)
        folder = TemporaryDirectory(prefix="save-", dir=self.session.folder)
        target = Path(folder.name) / settings.file_name(Path(opened.name).stem, mask is not None)
        await in_thread(self.session.save, opened, settings, mask, target)
        sent = BackgroundTask(folder.cleanup)  # where it fails, the folder goes with its object
        return FileResponse(target, filename=target.name, headers=PLAIN, background=sent)

    def all(self) -> list[BaseRoute]:
        """The routes, for an application."""
        gets, posts = ("show", "planes"), ("open", "close", "look", "exact", "save")
        routes: list[BaseRoute] = [Mount("/pisasr/examples", StaticFiles(directory=EXAMPLES))]
        paths = {"open": "open", "show": "{key}"}
        for name in (*gets, *posts):
            path, methods = paths.get(name, f"{{key}}/{name}"), ["GET" if name in gets else "POST"]
            routes.append(Route(f"/pisasr/{path}", in_a_line(getattr(self, name)), methods=methods))
        return routes


async def wish_of(request: Request) -> tuple[dict[str, Any], Settings, Any]:
    """(all, settings, mask) of the JSON object that was sent, no larger than a mask may be."""
    if int(request.headers.get("content-length", MAX_MASK_BYTES)) > MAX_MASK_BYTES + 10_000:
        raise PisasrError("that is too much; clear the painted place")
    values = dict(await request.json())
    mask = await in_thread(read_mask, str(values.get("mask", "")))
    return values, Settings(**values.get("settings", {})), mask


def about(session: Session, opened: OpenPicture) -> dict[str, Any]:
    """What viewer.js knows of an open picture."""
    names = ("key", "name", "size", "factor", "step", "mixes", "is_small", "boxes")
    known: dict[str, Any] = {name: getattr(opened, name) for name in names}
    known |= {"small": opened.small.shape[2:0:-1], "notices": opened.picture.notices}
    return known | session.state(opened)


def in_a_line(handler: Handler) -> Handler:
    """Answer exceptions of a handler with a line and status 400; who hasn't signed in, with 401."""

    async def answer(request: Request) -> Response:
        gradio = request.app
        if gradio.auth and not gradio.tokens.keys() & set(request.cookies.values()):
            return JSONResponse({"error": "sign in first; reload the page"}, status_code=401)
        try:
            return await handler(request)
        except Exception as error:
            return JSONResponse({"error": explain(error)}, status_code=400)

    return answer


class Guard:
    """Refuse what comes from other sites, goes by an unknown name, is too much, or guesses."""

    def __init__(self, app: Any, names: tuple[str, ...], uploads: str):
        self.app, self.uploads = app, Path(uploads)
        self.names = {"localhost", socket.gethostname().lower(), *map(str.lower, names)}
        self.wrong: dict[str, list[float]] = defaultdict(list)  # times of failed logins, by address

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        """Answer a request, or say in one line why not."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        aim = scope["path"].rstrip("/").rpartition("/")[2]
        if refusal := self._refusal(scope, aim):
            return await JSONResponse({"error": refusal[1]}, refusal[0])(scope, receive, send)

        async def watched(message: Any) -> None:
            if aim == "login" and message.get("status") == 400:
                self.wrong[scope["client"][0]].append(time.monotonic())
            await send(message)

        await self.app(scope, receive, watched)

    def _refusal(self, scope: Any, aim: str) -> tuple[int, str] | None:
        """(status, a line) where a request is refused."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        name = urlsplit(f"//{host}").hostname or ""
        is_address = ":" in name or name.replace(".", "").isdigit()  # which no site can take
        if not is_address and name not in self.names:
            return 421, "the page isn't known by this name; see --host and --name"
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "another site asks for this page's work"
        sizes = (file.stat().st_size for file in self.uploads.rglob("*") if file.is_file())
        if aim == "upload" and sum(sizes) > MAX_UPLOADS_MB * 10**6:
            return 413, f"{MAX_UPLOADS_MB} MB of uploads are held; wait until some are deleted"
        if aim == "login":
            times = self.wrong[scope["client"][0]]
            times[:] = [when for when in times if time.monotonic() - when < 60]
            if len(times) >= LOGINS_A_MINUTE:
                return 429, "too many wrong passwords; wait a minute"
        return None
