"""Answers of the API as the daemon gives them."""

from __future__ import annotations

from typing import Any


def vm_view(name: str = "web", **changes: Any) -> dict[str, Any]:
    """Return a VM as lists show it."""
    return {
        "name": name,
        "uuid": "6c1f4c0e-6a0e-4c53-9c3e-6d5fb9a0a001",
        "state": "ready",
        "reason": None,
        "image": "debian:12",
        "hypervisor": "qemu",
        "accelerator": "tcg",
        "mode": "para",
        "cpus": 2,
        "memory": 536870912,
        "disk": 4294967296,
        "addresses": ["10.77.0.10"],
        "ports": [{"address": "127.0.0.1", "host_port": 8080, "guest_port": 80}],
        "ready_seconds": 14.82,
        "created": 1790000000.0,
        "stack": None,
        "template": None,
        "clone": None,
        "nested": True,
        **changes,
    }


def vm_detail(name: str = "web", **changes: Any) -> dict[str, Any]:
    """Return a VM with everything that ``show`` tells."""
    return {
        **vm_view(name),
        "wanted": "running",
        "networks": [{"network": "default", "mac": "52:54:00:11:22:33", "address": "10.77.0.10"}],
        "image_id": "0f3a",
        "machine_type": "pc-q35-7.2",
        "isolation": "none",
        "started": 1790000001.0,
        "evidence": {
            "mode": "para",
            "virtio": ["virtio_blk", "virtio_net"],
            "xenbus": [],
            "disk_driver": "virtio_blk",
            "nic_driver": "virtio_net",
            "kernel": "6.1.0-30-cloud-amd64",
            "clocksource": "tsc",
            "contradiction": None,
        },
        "overhead": 134217728,
        "cpu_seconds": 12.5,
        "resident": 300000000,
        "proportional": 40000000,
        "backend_seconds": None,
        "backend_memory": None,
        "boot": "booted: the image has no guest agent",
        "ready": {"port": 80, "url": None, "command": None, "timeout": 300.0},
        "packages": ["nginx"],
        "user_data": None,
        "pid": 4242,
        **changes,
    }


def operation(kind: str = "run", target: str = "web", **changes: Any) -> dict[str, Any]:
    """Return an operation that goes on."""
    return {
        "id": "op1",
        "kind": kind,
        "target": target,
        "state": "running",
        "message": "",
        "fraction": None,
        "error": None,
        "result": None,
        "arguments": {},
        "created": 1790000000.0,
        "finished": None,
        **changes,
    }


def template_view(name: str = "base", **changes: Any) -> dict[str, Any]:
    """Return a template as lists show it."""
    return {
        "id": "7f1b2c3d",
        "name": name,
        "owner": "user",
        "state": "ready",
        "image": "micro",
        "cpus": 1,
        "memory": 268435456,
        "disk": 67108864,
        "mode": "para",
        "created": 1790000000.0,
        "used": 1790003600.0,
        "memory_used": 50331648,
        "size": 52428800,
        "clones": [],
        "reason": None,
        **changes,
    }


def problem(code: str, status: int, detail: str, **changes: Any) -> dict[str, Any]:
    """Return an error as the daemon words it."""
    return {
        "type": "about:blank",
        "title": "Error",
        "status": status,
        "detail": detail,
        "code": code,
        **changes,
    }


HOST: dict[str, Any] = {
    "name": "attic",
    "version": "0.1.0",
    "kernel": "6.1.0-30-amd64",
    "home": "/var/lib/hanok",
    "user": "root",
    "hypervisors": [
        {
            "name": "qemu",
            "version": "7.2.15",
            "accelerator": "tcg",
            "type": 2,
            "isolation": "none",
            "modes": ["full", "para"],
            "machine_type": "pc-q35-7.2",
            "reason": "a trial guest did not boot with KVM within 20 s",
        }
    ],
    "isolation": "none",
    "cpus": 2,
    "cpu_ratio": 8.0,
    "memory": 25769803776,
    "overhead": 134217728,
    "vms": 1,
    "running": 1,
    "rooms": [
        {"resource": "cpus", "capacity": 16, "used": 2, "reserved": 0, "free": 14},
        {
            "resource": "memory",
            "capacity": 25769803776,
            "used": 671088640,
            "reserved": 1073741824,
            "free": 24024973312,
        },
    ],
    "notes": ["no cgroup v2 controllers: limits are not enforced"],
}

HOST_SHARED: dict[str, Any] = {
    **HOST,
    "memory_policy": "shared",
    "memory_factor": 4.0,
    "shared_reserve": 2147483648,
    "sold": 32212254720,
    "used": 8589934592,
    "shared": 5368709120,
}

FIT: dict[str, Any] = {
    "count": 35,
    "limit": "memory",
    "missing": 134217728,
    "by_resource": {"cpus": 44, "memory": 35, "disk": 70},
    "rooms": [
        {"resource": "cpus", "capacity": 16.0, "used": 2.0, "free": 14.0},
        {"resource": "memory", "capacity": 24.0e9, "used": 6.0e8, "free": 2.3e10},
        {"resource": "disk", "capacity": 3.0e11, "used": 4.0e9, "free": 2.9e11},
    ],
}

FIT_TEMPLATE: dict[str, Any] = {
    **FIT,
    "policy": "guaranteed",
    "cost_now": 41943040,
    "cost_most": 335544320,
}

IMAGE_VIEW: dict[str, Any] = {
    "id": "0f3a" * 16,
    "ref": "debian:12",
    "os": "Debian 12",
    "packages": ["nginx"],
    "disk_size": 4294967296,
    "size": 400000000,
    "modes": ["full", "para"],
    "created": 1790000000.0,
    "used_by": ["web"],
}

NETWORK_VIEW: dict[str, Any] = {
    "name": "default",
    "subnet": "10.77.0.0/24",
    "gateway": "10.77.0.1",
    "outward": True,
    "running": True,
    "reason": None,
    "vms": ["web"],
}

EVENT: dict[str, Any] = {
    "number": 7,
    "time": 1790000000.0,
    "kind": "vm",
    "target": "web",
    "name": "ready",
    "message": "after 14.8 s",
}
