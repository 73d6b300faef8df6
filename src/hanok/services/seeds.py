"""The seed disk of a VM: what its guest is told at its first boot."""

from __future__ import annotations

from hanok.durable import give_file
from hanok.guest.keys import HostKey, ensure_key_pair, make_host_key
from hanok.guest.seed import SeedData, build_seed
from hanok.model.image import Image
from hanok.model.vm import VmRecord
from hanok.services.machines import account_of, files_of
from hanok.services.parts import Parts
from hanok.units import MIB

# All seeds are as large, so that a guest that goes on from a template's memory finds a disk of the
# size that it knows.
SEED_SIZE = 1 * MIB


async def write_seed(parts: Parts, record: VmRecord, image: Image) -> HostKey | None:
    """Write the VM's seed; return the guest's new SSH host key, if it is to have one.

    A clone's guest has been set up by its template's user data: only one without cloud-init, which
    keeps nothing of that, is told it again.
    """
    files = files_of(parts.settings, record.uuid)
    pair = await ensure_key_pair(parts.settings.keys, parts.runner)
    key: HostKey | None = None
    if image.ssh_user is not None:
        key = await make_host_key(parts.runner, parts.settings.keys)
        give_file(files.host_key, key.public.encode(), None)
    seed = build_seed(
        SeedData(
            instance_id=record.instance_id or record.uuid,
            host_name=record.spec.name,
            user_data=None if record.clone and image.cloud_init else record.spec.user_data,
            authorized_keys=(pair.public,),
            host_key_private=key.private if key else None,
            host_key_public=key.public if key else None,
            ssh_user=image.ssh_user,
            cloud_init=image.cloud_init,
        )
    )
    give_file(files.seed, seed, account_of(record.uid), size=SEED_SIZE)
    return key
