"""``hanok image pull`` and ``catalog``: cloud images of distributions."""

from __future__ import annotations

import click

from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.cli.progress import follow
from hanok.units import format_size


@click.command("catalog", cls=Example, examples=("hanok image catalog",))
@common_options
@pass_session
def catalog(session: Session) -> None:
    """List the cloud images that can be pulled."""
    found = session.client.catalog()
    if session.out.as_json:
        session.out.json(found)
        return
    rows = [
        (
            one["ref"],
            one["os"],
            format_size(one["memory"]),
            one["url"].partition("://")[2].partition("/")[0],
            one["here"] or "-",
        )
        for one in found
    ]
    session.out.table(("IMAGE", "SYSTEM", ">MEMORY", "FROM", "HERE AS"), rows)


@click.command(
    "pull",
    cls=Example,
    examples=("hanok image pull ubuntu:24.04", "hanok image pull fedora:44 --name build"),
)
@click.argument("image")
@click.option("--name", help="Call it own:NAME (default: by its name in the catalog).")
@common_options
@pass_session
def pull(session: Session, image: str, name: str | None) -> None:
    """Download IMAGE of the catalog, check it, and make it an image of this host.

    A download that breaks off goes on where it was, also by a later command. What comes must have
    the digest that the catalog names.
    """
    wanted = {"image": image} if name is None else {"image": image, "name": name}
    final = follow(session, session.client.pull_image(wanted))
    result = final["result"] or {}
    if session.out.as_json:
        session.out.json(result or final)
        return
    ref = result.get("ref", image)
    session.out.line(f"{image} is here as {ref}")
    session.out.line(f"Try: {session.program} run {ref} --name NAME --ready tcp:22")
