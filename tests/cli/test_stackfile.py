"""Stack files: YAML 1.2's rules, line numbers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.cli.stackfile import LARGEST, read_stack_file
from hanok.errors import InvalidInput
from hanok.model.stack import parse_stack

SHOP = """\
name: shop
networks: [backstage]
vms:
  db:
    image: debian:13
    memory: 512M
  web:
    image: "debian:12"
    cpus: 2
    publish:
      - 8080:80
      - 2222:22
    depends_on: [db]
    ready: {port: 80, timeout: 2.5}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.yaml"


def read(path: Path, text: str) -> dict[str, Any]:
    path.write_text(text)
    return read_stack_file(path).content


def test_content_and_lines(path: Path) -> None:
    path.write_text(SHOP)
    file = read_stack_file(path)
    assert file.name == "shop"
    assert file.content["vms"] == {
        "db": {"image": "debian:13", "memory": "512M"},
        "web": {
            "image": "debian:12",
            "cpus": 2,
            "publish": ["8080:80", "2222:22"],
            "depends_on": ["db"],
            "ready": {"port": 80, "timeout": 2.5},
        },
    }
    for field, line in [
        ("vms.web.memory", 7),
        ("vms.db.memory", 6),
        ("vms.web.publish.1", 12),
        ("vms.web.ready.timeout", 14),
        ("networks.0", 2),
        ("vms", 3),
    ]:
        assert file.place_of(InvalidInput("bad", field=field)) == f"{path}:{line}", field
    assert file.place_of(InvalidInput("bad", field="--json")) is None
    assert file.place_of(InvalidInput("bad")) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2222:22", "2222:22"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("2024-01-01", "2024-01-01"),
        ("010", 10),
        ("0x10", 16),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1e3", "1e3"),
        ("1.5", 1.5),
        ("-7", -7),
        ("~", None),
        ("", None),
        (".nan", ".nan"),
        ("'80'", "80"),
        ("!!str 80", "80"),
        ("99999999999999999999", "99999999999999999999"),
    ],
)
def test_scalars_resolve_as_yaml_1_2_says(path: Path, text: str, value: object) -> None:
    assert read(path, f"key: {text}\n") == {"key": value}


def test_anchors_and_merges(path: Path) -> None:
    text = """\
base: &base {cpus: 1, memory: 1G}
vms:
  a: {<<: *base, cpus: 2}
  b: *base
"""
    assert read(path, text)["vms"] == {
        "a": {"cpus": 2, "memory": "1G"},
        "b": {"cpus": 1, "memory": "1G"},
    }


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is there twice"),
        ("a:\n  b: [1, 2\nc: 3\n", 3, "not YAML"),
        ("a: b: c\n", 1, "not YAML"),
        ("a: *gone\n", 1, "not YAML"),
        ("a: &x [*x]\n", 1, "nested too deeply"),
        ("a: !!python/object:os.system {}\n", 1, "is not known here"),
        ("a: !!binary aGk=\n", 1, "is not known here"),
        ("[a]: 1\n", 1, "a key must be text"),
        ("a:\n\t- b\n", 2, "not YAML"),
    ],
)
def test_bad_files_are_refused_with_the_line(path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(path, text)
    assert caught.value.message.startswith(f"{path}:{line}: ")
    assert said in caught.value.message


@pytest.mark.parametrize("text", ["", "- a\n", "text\n"])
def test_a_file_that_is_no_mapping_is_refused(path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match="no mapping"):
        read(path, text)


def test_aliases_that_multiply_are_refused(path: Path) -> None:
    layers = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    layers += [
        f"{n}: &{n} [{', '.join([f'*{p}'] * 10)}]" for p, n in zip("abcdef", "bcdefg", strict=True)
    ]
    with pytest.raises(InvalidInput, match="too much content"):
        read(path, "\n".join(layers))


def test_deep_nesting_is_refused(path: Path) -> None:
    with pytest.raises(InvalidInput, match="nested too deeply"):
        read(path, "a: " + "[" * 50_000)


def test_large_and_missing_files_are_refused(path: Path) -> None:
    path.write_bytes(b"#" * (LARGEST + 1))
    with pytest.raises(InvalidInput, match="too large"):
        read_stack_file(path)
    path.unlink()
    with pytest.raises(InvalidInput, match="there is no file") as caught:
        read_stack_file(path)
    assert caught.value.hint
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(InvalidInput, match="not text"):
        read_stack_file(path)


def test_a_file_without_a_name_says_so(path: Path) -> None:
    path.write_text("vms: {}\n")
    with pytest.raises(InvalidInput) as caught:
        _ = read_stack_file(path).name
    assert caught.value.field == "name"


_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="﻿"),
    max_size=12,
)
_SCALARS = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | _TEXT
_DATA = st.dictionaries(
    _TEXT.filter(lambda key: key != "<<"),
    st.recursive(
        _SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(_TEXT.filter(lambda key: key != "<<"), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@settings(deadline=None)  # a busy machine is no error
@given(_DATA)
def test_json_is_read_as_json_means_it(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("stack") / "s.yaml"
    assert read(path, json.dumps(data, ensure_ascii=False)) == data


@settings(deadline=None)  # a busy machine is no error
@given(_DATA)
def test_every_key_has_its_line(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("stack") / "s.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True, default_flow_style=False))
    file = read_stack_file(path)
    for key in data:
        assert str(key) in file.lines


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_stacks(path: Path) -> None:
    file = read_stack_file(path)
    assert parse_stack(file.content).name == file.name == path.stem


def test_the_example_of_replicas_has_three() -> None:
    [path] = [path for path in EXAMPLES if path.name == "replicas.yaml"]
    machines = parse_stack(read_stack_file(path).content).machines()
    assert [machine.spec.name for machine in machines] == ["counter-1", "counter-2", "counter-3"]
    assert {machine.spec.ready.port for machine in machines} == {7000}
