"""The screens of VMs: pictures of them, and viewers who are let in for a while."""

from __future__ import annotations

import secrets

from hanok.errors import Conflict, Unsupported
from hanok.hypervisors.optional import HasScreen, Viewer
from hanok.model.views import VncView
from hanok.model.vm import VmRecord
from hanok.services.machines import has_screen
from hanok.services.parts import Parts, is_up

ADMITTED_SECONDS = 300
# The protocol looks at 8 characters; none that are taken for each other, since people type them.
_PASSWORD_LENGTH = 8
_LETTERS = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"


class ScreenService:
    """What users ask of screens."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def picture(self, name: str) -> bytes:
        """Return what the screen of a VM shows, a PNG. Raises NotFound, Conflict, Unsupported."""
        record = await self._record(name)
        return await self._hypervisor().screenshot(record.uuid)

    async def admit(self, name: str) -> VncView:
        """Let viewers in who connect within the next minutes; each time with a new password.

        Raises NotFound, Conflict and Unsupported.
        """
        record = await self._record(name)
        password = "".join(secrets.choice(_LETTERS) for _ in range(_PASSWORD_LENGTH))
        await self._hypervisor().admit_viewers(record.uuid, password, ADMITTED_SECONDS)
        return VncView(password=password, seconds=ADMITTED_SECONDS)

    async def open(self, name: str) -> Viewer:
        """Connect to the screen, by VNC. Raises NotFound, Conflict and Unsupported."""
        record = await self._record(name)
        return await self._hypervisor().open_screen(record.uuid)

    async def _record(self, name: str) -> VmRecord:
        record = await self._parts.vm(name)
        self._hypervisor()
        if not has_screen(record.spec, record.mode):
            raise Conflict(
                f"{name} has no screen: it runs in mode {record.mode} and none was asked for",
                hint="a VM that is made with '--display vga' has one; 'hanok console' and"
                " 'hanok logs' show what it prints",
            )
        if not is_up(record):
            raise Conflict(
                f"{name} is {record.state}: there is nothing to see",
                hint=f"'hanok start {name}' starts it",
            )
        return record

    def _hypervisor(self) -> HasScreen:
        hypervisor = self._parts.hypervisor
        if not isinstance(hypervisor, HasScreen):
            raise Unsupported(
                f"VMs on {hypervisor.name} have no screen here",
                expected="a VM on QEMU",
                hint="on Xen the device model of mode full is started without a graphics card;"
                " 'hanok console' shows what a guest prints",
            )
        return hypervisor
