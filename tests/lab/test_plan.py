"""Names, shapes, ports and templates of lab hosts: pure."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any, cast

import pytest

from hanok.errors import Conflict, HostError, InvalidInput, NotFound
from hanok.lab import plan
from hanok.lab.entry import read_credentials
from hanok.lab.plan import Shape
from hanok.model.views import TemplateView, VmView

_TOKEN = "hanok_" + "t" * 43
_CERTIFICATE = "-----BEGIN CERTIFICATE-----\naGFu\nb2s=\n-----END CERTIFICATE-----\n"


def _vm(name: str, image: str = "lab", port: int | None = None) -> VmView:
    published = {"address": "127.0.0.1", "host_port": port, "guest_port": 7443}
    ports = [] if port is None else [published]
    return cast(VmView, {"name": name, "image": image, "ports": ports})


def _template(name: str, image: str = "lab", clones: Any = ()) -> TemplateView:
    return cast(TemplateView, {"name": name, "image": image, "clones": list(clones)})


def test_one_host_has_the_name_and_several_are_numbered() -> None:
    assert plan.host_names("lab", 1) == ["lab"]
    assert plan.host_names("lab", 3) == ["lab-1", "lab-2", "lab-3"]


@pytest.mark.parametrize("count", [0, -1, 65])
def test_no_host_and_too_many_are_refused(count: int) -> None:
    with pytest.raises(InvalidInput):
        plan.host_names("lab", count)


def test_only_a_host_for_kvm_has_a_cpu_that_virtualizes() -> None:
    assert Shape("kvm").spec()["nested"] is True
    assert Shape("tcg").spec()["nested"] is False


def test_unknown_hypervisor_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        plan.checked_shape(Shape("xen"))
    assert caught.value.field == "--hypervisor"


def test_templates_differ_by_image_and_shape() -> None:
    shapes = [Shape(), Shape("kvm"), Shape(cpus=1), Shape(memory="3G"), Shape(disk="9G")]
    names = {plan.template_name(f"{n}" * 16, one) for one in shapes for n in (1, 2)}
    assert len(names) == 10
    assert all(plan.is_lab_template(_template(name)) for name in names)


def test_writing_a_size_otherwise_is_the_same_shape() -> None:
    one, other = Shape(memory="2G"), Shape(memory="2g")
    assert plan.template_name("1" * 16, one) == plan.template_name("1" * 16, other)


def test_only_what_the_lab_made_and_nobody_uses_is_stale() -> None:
    old, new = (plan.template_name(n * 16, Shape()) for n in ("1", "2"))
    used = plan.template_name("1" * 16, Shape("kvm"))
    templates = [_template(old), _template(new), _template(used, clones=["a"]), _template("lab-x")]
    assert plan.stale_templates(templates, "2" * 16) == [old]


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


def test_credentials_are_read_from_what_a_host_prints() -> None:
    found = read_credentials("lab", f"{_CERTIFICATE}{_TOKEN}\n")
    assert found.token == _TOKEN
    assert found.fingerprint == hashlib.sha256(b"hanok").hexdigest()


@pytest.mark.parametrize("text", ["", _CERTIFICATE, f"{_TOKEN}\n", f"{_CERTIFICATE}x{_TOKEN}\n"])
def test_half_an_answer_is_an_error_that_tells_no_token(text: str) -> None:
    with pytest.raises(HostError) as caught:
        read_credentials("lab", text)
    assert "hanok_" not in str(caught.value.message)
