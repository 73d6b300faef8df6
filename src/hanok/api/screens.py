"""Routes to the screens of guests: pictures, and viewers by VNC."""

from __future__ import annotations

from fastapi import APIRouter, Response, WebSocket

from hanok.api.common import CurrentServices, services_of
from hanok.api.roles import operator
from hanok.api.sockets import CHUNK, close, first_to_end, refuse
from hanok.errors import HanokError
from hanok.model.views import VncView

router = APIRouter(prefix="/vms", tags=["Guests"])


@router.get(
    "/{vm}/screenshot", response_class=Response, responses={200: {"content": {"image/png": {}}}}
)
@operator
async def screenshot(services: CurrentServices, vm: str) -> Response:
    """Return what the screen of the guest shows, a PNG."""
    picture = await services.screens.picture(vm)
    return Response(picture, media_type="image/png", headers={"Cache-Control": "no-store"})


@router.post("/{vm}/vnc")
@operator
async def admit_viewers(services: CurrentServices, vm: str, response: Response) -> VncView:
    """Let viewers in who connect soon and know the password that this returns."""
    response.headers["Cache-Control"] = "no-store"
    return await services.screens.admit(vm)


@router.websocket("/{vm}/vnc")
@operator
async def vnc(websocket: WebSocket, vm: str) -> None:
    """Connect to the screen by VNC (RFC 6143): binary frames both ways."""
    services = services_of(websocket)
    try:
        viewer = await services.screens.open(vm)
    except HanokError as error:
        await refuse(websocket, error)
        return
    reader, writer = viewer.stream.reader, viewer.stream.writer

    async def outward() -> None:
        await websocket.send_bytes(viewer.greeting)
        while chunk := await reader.read(CHUNK):
            await websocket.send_bytes(chunk)

    async def inward() -> None:
        while data := await websocket.receive_bytes():
            writer.write(data)
            await writer.drain()

    try:
        await websocket.accept()
        await first_to_end(outward(), inward())
    finally:
        writer.close()
    await close(websocket)
