"""Names, shapes, ports and templates of lab hosts: pure."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any, cast

import pytest

from hanok.errors import Conflict, InvalidInput, NotFound
from hanok.lab import plan
from hanok.lab.entry import make_credentials
from hanok.lab.plan import Shape
from hanok.model.views import TemplateView, VmView


def _vm(name: str, image: str = "lab", port: int | None = None, *, nested: bool = False) -> VmView:
    published = {"address": "127.0.0.1", "host_port": port, "guest_port": 7443}
    ports = [] if port is None else [published]
    return cast(VmView, {"name": name, "image": image, "ports": ports, "nested": nested})


def _template(name: str, image: str = "lab", clones: Any = ()) -> TemplateView:
    return cast(TemplateView, {"name": name, "image": image, "clones": list(clones)})


def test_one_host_has_the_name_and_several_are_numbered() -> None:
    assert plan.host_names("lab", 1) == ["lab"]
    assert plan.host_names("lab", 3) == ["lab-1", "lab-2", "lab-3"]


@pytest.mark.parametrize("count", [0, -1, 65])
def test_no_host_and_too_many_are_refused(count: int) -> None:
    with pytest.raises(InvalidInput):
        plan.host_names("lab", count)


def test_only_a_host_for_kvm_or_xen_has_a_cpu_that_virtualizes() -> None:
    assert Shape("kvm").spec()["nested"] is True
    assert Shape("xen").spec()["nested"] is True
    assert Shape("tcg").spec()["nested"] is False


def test_a_host_for_xen_has_an_image_and_a_memory_of_its_own() -> None:
    assert {Shape(name).spec()["image"] for name in ("tcg", "kvm")} == {"lab"}
    assert Shape("xen").spec()["image"] == "lab-xen"
    assert [Shape(name).spec()["memory"] for name in plan.HYPERVISORS] == ["2G", "2G", "3G"]
    assert Shape("xen", memory="4G").spec()["memory"] == "4G"


def test_a_host_for_xen_needs_room_beside_dom0() -> None:
    for memory in ("1G", "2047M"):
        with pytest.raises(InvalidInput) as caught:
            plan.checked_shape(Shape("xen", memory=memory))
        assert caught.value.field == "--memory"
    for shape in (Shape("xen", memory="2G"), Shape("xen"), Shape("kvm", memory="1G")):
        assert plan.checked_shape(shape) == shape


def test_the_definition_tells_the_hypervisor() -> None:
    hosts = [_vm("a"), _vm("b", nested=True), _vm("c", "lab-xen", nested=True)]
    assert [plan.hypervisor_of(host) for host in plan.lab_hosts(hosts)] == ["tcg", "kvm", "xen"]
    for name in plan.HYPERVISORS:
        spec = Shape(name).spec()
        host = _vm("x", str(spec["image"]), nested=bool(spec["nested"]))
        assert plan.hypervisor_of(host) == name


def test_unknown_hypervisor_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        plan.checked_shape(Shape("hyperv"))
    assert caught.value.field == "--hypervisor"


def test_templates_differ_by_image_and_shape() -> None:
    shapes = [Shape(), Shape("kvm"), Shape(cpus=1), Shape(memory="3G"), Shape(disk="9G")]
    names = {plan.template_name(f"{n}" * 16, one) for one in shapes for n in (1, 2)}
    assert len(names) == 10
    assert all(plan.is_lab_template(_template(name)) for name in names)
    below_xen = plan.template_name("1" * 16, Shape("xen"))
    assert plan.is_lab_template(_template(below_xen, "lab-xen"))
    assert not plan.is_lab_template(_template(below_xen))
    assert not plan.is_lab_template(_template("micro-11111111-222222", "micro"))


def test_writing_a_size_otherwise_is_the_same_shape() -> None:
    for sizes in (("2G", "2g"), (None, "2G")):
        one, other = (plan.template_name("1" * 16, Shape(memory=size)) for size in sizes)
        assert one == other


def test_only_what_the_lab_made_and_nobody_uses_is_stale() -> None:
    old, new = (plan.template_name(n * 16, Shape()) for n in ("1", "2"))
    used = plan.template_name("1" * 16, Shape("kvm"))
    templates = [_template(old), _template(new), _template(used, clones=["a"]), _template("lab-x")]
    assert plan.stale_templates(templates, "lab", "2" * 16) == [old]
    below_xen = _template(plan.template_name("1" * 16, Shape("xen")), "lab-xen")
    assert plan.stale_templates([*templates, below_xen], "lab", "2" * 16) == [old]
    assert plan.stale_templates([*templates, below_xen], "lab-xen", "2" * 16) == [below_xen["name"]]


def test_a_name_also_means_its_numbers() -> None:
    vms = [_vm("lab-1"), _vm("lab-2"), _vm("lab-x"), _vm("other"), _vm("web", "micro")]
    assert [vm["name"] for vm in plan.find_hosts(["lab"], vms)] == ["lab-1", "lab-2"]
    assert [vm["name"] for vm in plan.find_hosts(["lab-2", "lab"], vms)] == ["lab-2", "lab-1"]


@pytest.mark.parametrize("name", ["web", "none", "la"])
def test_what_is_no_lab_host_is_not_found(name: str) -> None:
    with pytest.raises(NotFound):
        plan.find_hosts([name], [_vm("lab-1"), _vm("web", "micro")])


def test_ports_that_are_published_or_taken_are_passed_over() -> None:
    vms = [_vm("a", port=7444), _vm("b", port=7446)]
    assert plan.port_of(vms[0]) == 7444
    found = plan.free_ports(vms, lambda port: port != 7445)
    assert list(itertools.islice(found, 2)) == [7447, 7448]


def test_no_free_port_is_a_conflict() -> None:
    with pytest.raises(Conflict):
        next(plan.free_ports([], lambda port: False))


def test_a_host_is_told_no_token_but_its_digest() -> None:
    first, second = make_credentials(), make_credentials()
    assert first.fingerprint != second.fingerprint
    assert first.token.encode() not in first.message
    assert hashlib.sha256(first.token.encode()).hexdigest().encode() in first.message
    for secret in (first.token, first.key):
        assert secret not in repr(first)


@pytest.mark.parametrize(
    ("accelerator", "version", "loses"),
    [
        ("tcg", "7.2.22", False),
        ("tcg", "10.0.13", True),
        ("kvm", "10.0.13", False),
        ("fake", "fake", False),
    ],
)
def test_it_is_known_which_emulator_loses_page_faults(
    accelerator: str, version: str, loses: bool
) -> None:
    assert plan.loses_page_faults(accelerator, version) is loses
