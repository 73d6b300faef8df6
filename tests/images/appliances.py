"""Appliances as other hypervisors export them, made small."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vbox="http://www.virtualbox.org/ovf/machine"
  xmlns:vmw="http://www.vmware.com/schema/ovf">
"""

# By VMware's habits: units as powers, a configuration, the firmware as a setting of its own.
VMWARE = (
    _HEAD
    + """  <References>
    <File ovf:href="app-disk1.vmdk" ovf:id="file1" ovf:size="1"/>
    <File ovf:href="app-disk2.vmdk" ovf:id="file2"/>
  </References>
  <DiskSection><Info/>
    <Disk ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="vmdisk1"
      ovf:fileRef="file1" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html"/>
    <Disk ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="vmdisk2"
      ovf:fileRef="file2"/>
    <Disk ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk3"/>
  </DiskSection>
  <NetworkSection><Info/><Network ovf:name="front"/><Network ovf:name="back"/></NetworkSection>
  <DeploymentOptionSection><Info/>
    <Configuration ovf:id="small"/><Configuration ovf:id="large" ovf:default="true"/>
  </DeploymentOptionSection>
  <VirtualSystem ovf:id="app"><Info/><Name>An Appliance</Name>
    <OperatingSystemSection ovf:id="96"><Info/><Description>Debian GNU/Linux 12</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection><Info/>
      <Item ovf:configuration="small"><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
      <Item ovf:configuration="large"><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>192</rasd:VirtualQuantity></Item>
      <Item><rasd:ResourceType>17</rasd:ResourceType>
        <rasd:HostResource>ovf:/disk/vmdisk2</rasd:HostResource></Item>
      <Item><rasd:ResourceType>17</rasd:ResourceType>
        <rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource></Item>
      <Item><rasd:ResourceType>17</rasd:ResourceType>
        <rasd:HostResource>ovf:/disk/vmdisk3</rasd:HostResource></Item>
      <Item><rasd:ResourceType>10</rasd:ResourceType><rasd:Connection>front</rasd:Connection></Item>
      <Item><rasd:ResourceType>10</rasd:ResourceType><rasd:Connection>back</rasd:Connection></Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="bios"/>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""
)

# By VirtualBox's habits: older units, its own description of the machine beside.
VIRTUALBOX = (
    _HEAD
    + """  <References><File ovf:id="file1" ovf:href="box.vmdk"/></References>
  <DiskSection><Info/>
    <Disk ovf:capacity="8388608" ovf:diskId="vmdisk1" ovf:fileRef="file1"/>
  </DiskSection>
  <VirtualSystem ovf:id="box">
    <VirtualHardwareSection>
      <Item><rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>128</rasd:VirtualQuantity></Item>
      <Item><rasd:ResourceType>17</rasd:ResourceType>
        <rasd:HostResource>/disk/vmdisk1</rasd:HostResource></Item>
      <Item><rasd:ResourceType>10</rasd:ResourceType><rasd:Connection>NAT</rasd:Connection></Item>
    </VirtualHardwareSection>
    <vbox:Machine><Hardware><Firmware type="EFI"/></Hardware></vbox:Machine>
  </VirtualSystem>
</Envelope>
"""
)


def manifest(files: Mapping[str, bytes], kind: str = "SHA256") -> bytes:
    """Return the manifest of ``files``."""
    lines = (
        f"{kind}({name})= {hashlib.new(kind.lower(), data).hexdigest()}\n"
        for name, data in files.items()
    )
    return "".join(lines).encode()


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write an archive of ``files`` in their order, and return it."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
