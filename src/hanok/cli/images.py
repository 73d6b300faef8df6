"""``hanok image``: what VMs boot from."""

from __future__ import annotations

from collections.abc import Sequence

import click

from hanok.cli.base import (
    Example,
    Lazy,
    LazyGroup,
    Session,
    common_options,
    complete_image,
    pass_session,
)
from hanok.cli.progress import follow
from hanok.errors import HanokError
from hanok.units import format_size

_SHORT_ID = 12


@click.group(
    "image",
    cls=LazyGroup,
    sections={
        "Commands": {
            "list": Lazy("images", "list_images", "List the images of this host."),
            "build": Lazy("images", "build", "Build an image, with packages if wanted."),
            "import": Lazy("imports", "import_disk", "Make an image of a disk that others made."),
            "pull": Lazy("pull", "pull", "Download a cloud image of the catalog."),
            "catalog": Lazy("pull", "catalog", "List the cloud images that can be pulled."),
            "inspect": Lazy("inspect", "inspect", "Show an image and what its kernels can do."),
            "paravirtualize": Lazy(
                "paravirtualize", "paravirtualize", "Make an image that suits mode para of another."
            ),
            "export": Lazy("exports", "export_image", "Save an image's disk as one file."),
            "delete": Lazy("images", "delete", "Delete images that no VM uses."),
        }
    },
    aliases={"ls": "list", "rm": "delete", "show": "inspect"},
    examples=("hanok image build debian:12 --package nginx", "hanok image list"),
)
def image() -> None:
    """List, build, import, inspect and delete images: what VMs boot from."""


@click.command("list", cls=Example, examples=("hanok image list",))
@common_options
@pass_session
def list_images(session: Session) -> None:
    """List the images of this host."""
    found = session.client.images()
    if session.out.as_json:
        session.out.json(found)
    elif not found:
        session.out.line("No images yet; 'hanok run' builds what it needs.")
    else:
        rows = [
            (
                one["ref"],
                one["id"][:_SHORT_ID],
                one["os"],
                " ".join(one["packages"]) or "-",
                ", ".join(one["modes"]),
                format_size(one["size"]),
                ", ".join(one["used_by"]) or "-",
            )
            for one in found
        ]
        titles = ("IMAGE", "ID", "SYSTEM", "PACKAGES", "MODES", ">SIZE", "USED BY")
        session.out.table(titles, rows)


@click.command(
    "build",
    cls=Example,
    examples=("hanok image build micro", "hanok image build debian:12 --package nginx"),
)
@click.argument("image")
@click.option("--package", "packages", multiple=True, help="A package to put in. Repeatable.")
@common_options
@pass_session
def build(session: Session, image: str, packages: Sequence[str]) -> None:
    """Build IMAGE (micro, debian:12, ...); the same request again costs nothing."""
    final = follow(session, session.client.build_image(image, packages))
    if session.out.as_json:
        session.out.json(final["result"] or final)
    else:
        session.out.line(f"{image} is built")


@click.command("delete", cls=Example, examples=("hanok image delete debian:12",))
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete_image
)
@common_options
@pass_session
def delete(session: Session, images: Sequence[str]) -> int:
    """Delete images that no VM uses."""
    status = 0
    for name in images:
        try:
            session.client.delete_image(name)
            session.out.line(f"{name} is deleted")
        except HanokError as error:
            session.out.error(error)
            status = max(status, error.exit_status)
    if session.out.as_json:
        session.out.json(session.client.images())
    return status
