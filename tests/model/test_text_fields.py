"""Text of users: whatever it is, it is refused, or it ends as exactly one value where it belongs.

Each field is followed to where it leaves Hanok: QEMU's arguments, xl.cfg, the builder's arguments,
rules and hosts of a network, the seed, the agent's requests. ``HANOK_FUZZ=long`` tries 100,000
texts a field.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycdlib import PyCdlib

from hanok.errors import InvalidInput
from hanok.guest.agent import _exec_arguments
from hanok.guest.seed import SeedData, build_seed
from hanok.guest.wire import encode_request
from hanok.hypervisors.qemu.argv import build_argv
from hanok.hypervisors.xen.config import build_config
from hanok.images.builder import mmdebstrap_argv
from hanok.images.recipes import resolve
from hanok.images.sandbox import Sandbox
from hanok.model.image import ImportRequest, Kernel
from hanok.model.network import NetworkSpec
from hanok.model.stack import Stack
from hanok.model.template import CloneRequest, TemplateRequest
from hanok.model.token import TokenRequest
from hanok.model.validation import validated
from hanok.model.vm import Ready, VmSpec
from hanok.network.keeper import filters
from hanok.network.keeper.config import parse_port
from hanok.units import parse_size
from tests.fuzz import bounded
from tests.hypervisors.test_argv import FULL, PARA, TCG, options, values
from tests.hypervisors.xen.test_config import ALL
from tests.hypervisors.xen.test_config import FULL as XEN_FULL
from tests.hypervisors.xen.test_config import PARA as XEN_PARA
from tests.hypervisors.xen.xlcfg import parse
from tests.network.test_texts import CONFIG, GOOD

NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", re.A)
ATTACKS = (
    ",", ",,", "a,guest=b", "a,readonly=off", "-daemonize", "--config=/etc/passwd", "a b", "a\tb",
    "a\nscript=/bin/sh", 'a"\nbootloader = "/bin/sh', "a'b", "$(id)", "`id`", "a;id", "a|id", "&id",
    "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", 'json:{"driver":"file"}', "a\0b", "\0",
    "a\\", "a\\\"", "%s%n", "{n}", "{0.__class__}", "\ud800", "\u202e", "\uff41", "İ",
    "1e9", "٣", "0x10",
    "127.0.0.1:80:80", "8080:80:80", "٨:٨", "http://a b/", "http://[::1", "tcp:٢٢", "console:\n",
    "#!/bin/sh\nid", "#cloud-config\na: &a [*a]\n", "#cloud-config\nusers: 5\n", "}; flush ruleset",
    "web\n", "web ", "-web", "web-", "w" * 64, "micro:latest\n", "debian:12 ", "own:../x",
    "kernel:1",
)  # fmt: skip
ALPHABET = st.sampled_from("abz09-._:,=/\\\"'\n\t \0{}[]$`;|&#%+~\u00e9\u202e\ud800")
TEXT = st.one_of(
    st.text(max_size=24),
    st.text(ALPHABET, max_size=12),
    st.sampled_from(ATTACKS),
    st.builds("".join, st.lists(st.sampled_from(ATTACKS) | st.just("web"), max_size=3)),
    st.from_regex(r"\A[a-z][a-z0-9-]{0,8}\Z"),
)
TEXTS = st.lists(TEXT, min_size=20, max_size=20)
SPEC = {"name": "web", "image": "micro"}
SANDBOX = Sandbox(Path("/b"), Path("/s"), None, 0)


def spec(**fields: object) -> VmSpec:
    """Return a definition with these fields. Raises InvalidInput."""
    return validated(VmSpec, {**SPEC, **fields})


def name_of_a_vm(text: str) -> None:
    name = spec(name=text).name
    assert NAME.fullmatch(name)
    assert name == text
    in_qemu(text)
    in_xl(text)
    port = parse_port({**GOOD, "host_name": name}, CONFIG)
    assert re.fullmatch(r"[\w .:,{}\"\n-]*", filters.change_rules([port], [port]), re.A)
    assert seed(SeedData("i", name, cloud_init=False))["meta-data"].split() == [
        b"instance-id:", b"i", b"local-hostname:", json_or_plain(name),
    ]  # fmt: skip


def json_or_plain(name: str) -> bytes:
    """Return a name as YAML has it: some, such as ``null`` and ``on``, are quoted."""
    import yaml

    dumped = yaml.safe_dump({"local-hostname": name}).split(": ", 1)[1].strip()
    return dumped.encode()


def in_qemu(text: str) -> None:
    """A text as the name of a machine: QEMU is told one guest, whatever the text."""
    argv = build_argv(dataclasses.replace(PARA, name=text), TCG, (7,))
    calm = build_argv(PARA, TCG, (7,))
    assert dict(values(options(argv, "-name")[0])) == {"guest": text}
    changed = [at for at, word in enumerate(argv) if word != calm[at]]
    assert len(argv) == len(calm)
    assert changed in ([], [calm.index("-name") + 1])


def in_xl(text: str) -> None:
    """The same for xl: one value of one key."""
    for machine, taps in ((XEN_PARA, ()), (XEN_FULL, (7,))):
        read = parse(build_config(dataclasses.replace(machine, name=text), taps, ALL))
        calm = parse(build_config(machine, taps, ALL))
        assert [key for key, _ in read] == [key for key, _ in calm]
        assert [pair for pair in read if pair not in calm and pair[0] != "name"] == []
        assert str(dict(read)["name"]).startswith(f"{text}-")


def kernel_line(text: str) -> None:
    """A kernel's command line, from a recipe of an image."""
    for machine in (PARA, FULL):
        assert machine.kernel is not None
        kernel = machine.kernel.model_copy(update={"cmdline": text})
        argv = build_argv(dataclasses.replace(machine, kernel=kernel), TCG, (7,))
        assert options(argv, "-append") == [text]
        assert len(argv) == len(build_argv(machine, TCG, (7,)))
    assert XEN_PARA.kernel is not None
    kernel = XEN_PARA.kernel.model_copy(update={"cmdline": text})
    read = dict(parse(build_config(dataclasses.replace(XEN_PARA, kernel=kernel), (), ALL)))
    assert str(read["cmdline"]).startswith(text)


def folder(text: str) -> None:
    """A path, such as that of the data directory."""
    path = Path("/srv") / text
    disk = dataclasses.replace(PARA.disks[0], path=path / "disk.qcow2")
    argv = build_argv(dataclasses.replace(PARA, folder=path, disks=(disk,)), TCG, (7,))
    assert len(argv) == len(build_argv(dataclasses.replace(PARA, disks=(disk,)), TCG, (7,)))
    assert options(argv, "-pidfile") == [str(path / "qemu.pid")]
    nodes = [json.loads(node) for node in options(argv, "-blockdev")]
    assert [one["filename"] for one in nodes if one.get("filename")][-1] == str(disk.path)
    sockets = [dict(values(one)) for one in options(argv, "-chardev")]
    assert sockets[0]["path"] == str(path / "qmp.sock")


def builder(ref: str, packages: tuple[str, ...]) -> list[str]:
    """Return how an image is built."""
    return mmdebstrap_argv(resolve(ref, packages), SANDBOX)


def image(text: str) -> None:
    ref = spec(image=text).image
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*(:[a-zA-Z0-9._-]+)?", ref, re.A)
    argv = builder(ref, ())
    assert len(argv) <= len(builder("debian:12", ())) + 1
    assert all("\n" not in word and "\0" not in word for word in argv)


def package(text: str) -> None:
    (name,) = spec(image="debian:12", packages=[text]).packages
    argv, calm = builder("debian:12", (name,)), builder("debian:12", ("nginx",))
    assert len(argv) == len(calm)
    (include,) = [word for word in argv if word.startswith("--include=")]
    assert include.removeprefix("--include=").split(",").count(name) == 1
    assert [word.replace(f"{name}", "nginx") for word in argv if name in word or word in calm]
    assert re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", name, re.A)


def network(text: str) -> None:
    assert NAME.fullmatch(validated(NetworkSpec, {"name": text}).name)
    assert all(NAME.fullmatch(one) for one in spec(networks=[text]).networks)


def subnet(text: str) -> None:
    found = validated(NetworkSpec, {"name": "net", "subnet": text}).subnet
    assert re.fullmatch(r"[0-9.]+/[0-9]+", found or "", re.A)


def published(text: str) -> None:
    (port,) = spec(publish=[text]).publish
    assert re.fullmatch(r"[0-9.]+", port.address, re.A)
    assert 0 < port.host_port < 65536
    assert 0 < port.guest_port < 65536


def published_at(text: str) -> None:
    (port,) = spec(publish=[{"host_port": 80, "guest_port": 80, "address": text}]).publish
    assert re.fullmatch(r"[0-9.]+", port.address, re.A)


def user_data(text: str) -> None:
    data = spec(user_data=text).user_data
    assert seed(SeedData("i", "web", user_data=data, cloud_init=False))["user-data"] == (
        text.encode()
    )
    whole = seed(SeedData("i", "web", user_data=data, authorized_keys=("k",), ssh_user="debian"))
    assert whole["user-data"].count(b'filename="hanok"') == 1
    assert set(whole) == {"meta-data", "user-data"}


def seed(data: SeedData) -> dict[str, bytes]:
    """Return the files of a seed, read back by their long names."""
    disk = PyCdlib()
    disk.open_fp(io.BytesIO(build_seed(data)))
    found = {}
    for child in disk.list_children(joliet_path="/"):
        if child.is_file():
            name = child.file_identifier().decode("utf-16-be")
            content = io.BytesIO()
            disk.get_file_from_iso_fp(content, joliet_path=f"/{name}")
            found[name] = content.getvalue()
    disk.close()
    return found


def ready(text: str) -> None:
    check = spec(ready=text).ready
    assert len([one for one in (check.port, check.url, check.console) if one is not None]) == 1
    assert check.command is None


def ready_url(text: str) -> None:
    url = spec(ready={"url": text}).ready.url
    assert url is not None
    assert re.fullmatch(r"http://\S*", url)


def ready_command(text: str) -> None:
    command = validated(Ready, {"command": text}).command
    words_in_guest(["/bin/sh", "-c", command or ""])


def path_in_guest(text: str) -> None:
    """A path in a guest: one value of one request, one word of a command."""
    line = encode_request("guest-file-open", {"path": text, "mode": "r"}, 1)
    assert line.count(b"\n") == 1
    assert json.loads(line)["arguments"]["path"] == text
    words_in_guest(["/bin/sh", "-c", "true", "sh", text])


def words_in_guest(words: list[str]) -> None:
    """Words of a command in a guest."""
    line = encode_request("guest-exec", _exec_arguments(words), 1)
    assert line.count(b"\n") == 1
    told = json.loads(line)["arguments"]
    assert [told["path"], *told["arg"]] == words


def imported(field: str) -> Callable[[str], None]:
    """Return the check of a field of an import."""

    def check(text: str) -> None:
        found = getattr(validated(ImportRequest, {"name": "old", field: text}), field)
        assert found == text
        if field == "name":
            assert NAME.fullmatch(text)
        if field == "ssh_user":
            assert re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", text, re.A)
            files = seed(SeedData("i", "web", authorized_keys=("k",), ssh_user=text))
            assert files["user-data"].count(b'filename="hanok"') == 1
        if field == "cmdline":
            assert re.fullmatch(r"[ -~]*", text)
            kernel = Kernel(name="k", vmlinuz="k", initrd="", cmdline=text, modes=(), bare=True)
            argv = build_argv(dataclasses.replace(FULL, kernel=kernel), TCG, (7,))
            assert argv[argv.index("-append") + 1] == text
            assert argv.count("-append") == 1 + (text == "-append")

    return check


def template(text: str) -> None:
    assert NAME.fullmatch(validated(TemplateRequest, {"name": text, "source": "web"}).name)


def clone(text: str) -> None:
    found = validated(CloneRequest, {"template": "base", "name": text, "count": 3}).names()
    assert len(set(found)) == 3
    assert all(NAME.fullmatch(one) for one in found)


def token(text: str) -> None:
    assert NAME.fullmatch(validated(TokenRequest, {"name": text, "role": "viewer"}).name)


def stack(text: str) -> None:
    vm = {"image": "micro"}
    assert NAME.fullmatch(validated(Stack, {"name": text, "vms": {"a": vm}}).name)


def vm_of_a_stack(text: str) -> None:
    found = validated(Stack, {"name": "s", "vms": {text: {"image": "micro"}}}).vms
    assert all(NAME.fullmatch(one) for one in found)


def size(text: str) -> None:
    assert 0 <= parse_size(text) < 2**80
    assert spec(memory=text).memory == parse_size(text)


FIELDS: dict[str, Callable[[str], None]] = {
    "name": name_of_a_vm,
    "name-in-qemu": in_qemu,
    "name-in-xl": in_xl,
    "kernel-line": kernel_line,
    "folder": folder,
    "image": image,
    "package": package,
    "network": network,
    "subnet": subnet,
    "publish": published,
    "publish-address": published_at,
    "user-data": user_data,
    "ready": ready,
    "ready-url": ready_url,
    "ready-command": ready_command,
    "path-in-guest": path_in_guest,
    "import-name": imported("name"),
    "import-file": imported("file"),
    "import-os": imported("os"),
    "import-ssh-user": imported("ssh_user"),
    "import-cmdline": imported("cmdline"),
    "template": template,
    "clone": clone,
    "token": token,
    "stack": stack,
    "stack-vm": vm_of_a_stack,
    "size": size,
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("field", FIELDS)
def test_any_text_is_refused_or_one_value(field: str) -> None:
    check = FIELDS[field]

    @bounded(40, 5_000)
    @given(TEXTS)
    def try_them(texts: list[str]) -> None:
        for text in texts:
            try:
                check(text)
            except InvalidInput:
                continue

    try_them()


def test_user_data_that_grows_without_end_costs_nothing() -> None:
    """Aliases of aliases, where Hanok looks itself: at the keys of a user."""
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
    text = (
        f"#cloud-config\nl0: &l0 [a]\n{levels}\nusers:\n- name: root\n  ssh_authorized_keys: *l11\n"
    )
    data = SeedData("i", "web", user_data=text, authorized_keys=("k",), ssh_user="root")
    assert len(build_seed(data)) < 2**20
