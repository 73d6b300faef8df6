"""Commands against recorded answers: what is asked of the daemon, what is shown, exit statuses."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli import recorded
from tests.cli.conftest import Hanok
from tests.cli.stand_in import Answer, StandIn, ndjson

DONE: dict[str, Any] = {"state": "done", "message": "ready", "fraction": 1.0}


def test_list_for_people_and_programs(api: StandIn, hanok: Hanok) -> None:
    vms = [
        recorded.vm_view(),
        recorded.vm_view("db", state="failed", reason="no kernel\x1b[2J", addresses=[], ports=[]),
    ]
    api.on("GET", "vms", vms)
    shown = hanok("list")
    assert shown.returncode == 0
    assert re.search(r"^web +ready +debian:12 +qemu/tcg +para +2 +512 MiB", shown.stdout, re.M)
    assert "db failed:  no kernel?[2J" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert json.loads(hanok("list", "--json").stdout) == vms
    assert hanok("ls").stdout == shown.stdout


def test_tables_fit_100_columns(api: StandIn, hanok: Hanok) -> None:
    ports = [{"address": "0.0.0.0", "host_port": 18000 + n, "guest_port": 8000} for n in range(9)]
    vms = [recorded.vm_view("n" * 63, addresses=["10.77.0.10", "10.78.0.10"], ports=ports)] * 3
    api.on("GET", "vms", vms)
    assert max(len(line) for line in hanok("list").stdout.splitlines()) <= 100


def test_an_empty_list_says_how_to_begin(api: StandIn, hanok: Hanok) -> None:
    api.on("GET", "vms", [])
    assert "hanok run micro" in hanok("list").stdout
    assert json.loads(hanok("list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("target", "answer", "command"),
    [
        ("vms/web", recorded.vm_detail(), ("show", "web")),
        ("host", recorded.HOST, ("host", "show")),
        ("host", recorded.HOST_SHARED, ("host", "show")),
        ("templates", [recorded.template_view()], ("template", "list")),
        ("templates/base", recorded.template_view(), ("template", "show", "base")),
        ("images", [recorded.IMAGE_VIEW], ("image", "list")),
        ("networks", [recorded.NETWORK_VIEW], ("network", "list")),
        ("networks/default", recorded.NETWORK_VIEW, ("network", "show", "default")),
        ("operations", [recorded.operation()], ("operations", "list")),
        ("operations/op1", recorded.operation(), ("operations", "show", "op1")),
    ],
)
def test_what_is_shown_is_what_came(
    api: StandIn, hanok: Hanok, target: str, answer: Any, command: tuple[str, ...]
) -> None:
    api.on("GET", target, answer)
    assert json.loads(hanok(*command, "--json").stdout) == answer
    people = hanok(*command)
    assert people.returncode == 0
    assert people.stdout.strip()
    assert max(len(line) for line in people.stdout.splitlines()) <= 100


def test_show_tells_the_evidence(api: StandIn, hanok: Hanok) -> None:
    api.on("GET", "vms/web", recorded.vm_detail())
    shown = hanok("show", "web").stdout
    assert "nic driver: virtio_net" in shown
    assert "isolation none" in shown
    assert re.search(r"^last start +booted: the image has no guest agent$", shown, re.M)
    assert "38.1 MiB of memory (its share; 286.1 MiB resident)" in shown
    assert re.search(r"^CPU time +12\.5 s$", shown, re.M)
    assert "clone of" not in shown


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "base", "clone": "instant"}, "base (instant)"),
        ({"template": None, "clone": "full"}, "a template that is gone (full)"),
    ],
)
def test_show_tells_what_a_clone_is_of(
    api: StandIn, hanok: Hanok, changes: dict[str, Any], said: str
) -> None:
    found = recorded.vm_detail(**changes, pid=None, proportional=None)
    api.on("GET", "vms/web", found)
    shown = hanok("show", "web").stdout
    assert re.search(rf"^clone of +{re.escape(said)}$", shown, re.M)
    assert "286.1 MiB of memory resident" in shown
    assert "pid" not in shown


def test_a_wide_list_shows_the_templates(api: StandIn, hanok: Hanok) -> None:
    clone = recorded.vm_view("web-1", template="base", clone="instant", stack="shop")
    api.on("GET", "vms", [recorded.vm_view(), clone])
    assert "TEMPLATE" not in hanok("list").stdout
    hanok.environ = {"COLUMNS": "120"}
    lines = hanok("list", "--wide").stdout.splitlines()
    assert lines[0].split()[-2:] == ["READY", "TEMPLATE"]
    assert lines[1].split()[-3:] == ["14.8", "s", "-"]
    assert lines[2].split()[-4:] == ["14.8", "s", "base", "(instant)"]


def test_run_sends_the_options_as_they_are(api: StandIn, hanok: Hanok, tmp_path: Path) -> None:
    api.on("POST", "vms", recorded.operation(), status=202)
    api.stream("GET", "operations/op1/follow", ndjson(recorded.operation(**DONE)))
    api.on("GET", "vms/web", recorded.vm_detail())
    seed = tmp_path / "seed"
    seed.write_text("#cloud-config\n")
    options = (
        "--cpus 2 --memory 1.5G --disk 8G --mode para --network a --network b --publish 8080:80"
        " --package nginx --package curl --ready-port 80 --ready-timeout 60 --cold"
    )
    done = hanok(
        "run", "debian:12", "--name", "web", *options.split(), "--user-data", str(seed), "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == recorded.vm_detail()
    assert done.stderr == ""
    assert api.only("POST", "vms").json == {
        "name": "web",
        "image": "debian:12",
        "cpus": 2,
        "memory": "1.5G",
        "disk": "8G",
        "mode": "para",
        "networks": ["a", "b"],
        "publish": ["8080:80"],
        "packages": ["nginx", "curl"],
        "user_data": "#cloud-config\n",
        "ready": {"port": 80, "timeout": 60.0},
        "cold": True,
    }


def test_run_sends_no_defaults_and_shows_progress_lines(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "vms", recorded.operation(), status=202)
    steps = [recorded.operation(message=text) for text in ("booting", "booting", "waiting")]
    api.stream("GET", "operations/op1/follow", ndjson(*steps, recorded.operation(**DONE)))
    api.on("GET", "vms/web", recorded.vm_detail())
    done = hanok("run", "micro", "--name", "web")
    assert done.returncode == 0
    assert api.only("POST", "vms").json == {"name": "web", "image": "micro"}
    assert done.stderr.splitlines() == [
        "run web: booting",
        "run web: waiting",
        "run web: ready",
    ]
    assert "web is ready after 14.8 s." in done.stdout


def test_run_without_waiting_gives_the_operation(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "vms", recorded.operation(), status=202)
    done = hanok("run", "micro", "--name", "web", "--no-wait", "--json")
    assert json.loads(done.stdout) == recorded.operation()
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    ("code", "http", "status"),
    [
        ("invalid-input", 422, 2),
        ("unsupported", 422, 2),
        ("not-found", 404, 1),
        ("conflict", 409, 1),
        ("not-admitted", 507, 1),
        ("internal", 500, 1),
        ("a-code-of-the-future", 500, 1),
    ],
)
def test_errors_keep_their_words_and_status(
    api: StandIn, hanok: Hanok, code: str, http: int, status: int
) -> None:
    told = recorded.problem(code, http, "what happened", field="memory", expected="x", hint="y")
    api.on("POST", "vms", told, status=http)
    done = hanok("run", "micro", "--name", "web")
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: what happened",
        "  field:    memory",
        "  expected: x",
        "  hint:     y",
    ]
    as_json = hanok("run", "micro", "--name", "web", "--json")
    assert (as_json.returncode, as_json.stdout) == (status, "")
    found = json.loads(as_json.stderr)
    assert (found["detail"], found["field"]) == ("what happened", "memory")
    if code != "a-code-of-the-future":
        assert (found["code"], found["status"]) == (code, http)


def test_a_failed_operation_fails_the_command(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "vms", recorded.operation(), status=202)
    error = recorded.problem("hypervisor", 500, "QEMU died", hint="hanok logs web")
    failed = recorded.operation(state="failed", error=error)
    api.stream("GET", "operations/op1/follow", ndjson(failed))
    done = hanok("run", "micro", "--name", "web")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: QEMU died", "  hint:     hanok logs web"]


def test_one_name_that_fails_does_not_stop_the_others(api: StandIn, hanok: Hanok) -> None:
    gone = recorded.problem("not-found", 404, "there is no VM 'gone'")
    api.on("POST", "vms/gone/start", gone, status=404)
    for name in ("a", "b"):
        begun = recorded.operation("start", name, id=name)
        api.on("POST", f"vms/{name}/start", begun, status=202)
        api.stream("GET", f"operations/{name}/follow", ndjson({**begun, "state": "done"}))
    done = hanok("start", "a", "gone", "b", "a")
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["a is started", "b is started"]
    assert done.stderr.splitlines() == ["error: there is no VM 'gone'"]
    assert [one["target"] for one in json.loads(hanok("start", "a", "b", "--json").stdout)] == [
        "a",
        "b",
    ]


def test_stop_and_delete_pass_their_options(api: StandIn, hanok: Hanok) -> None:
    done = recorded.operation("stop", state="done")
    api.on("POST", "vms/web/stop", done, status=202)
    api.on("DELETE", "vms/web?force=true", done, status=202)
    api.on("DELETE", "vms/web?force=false", done, status=202)
    assert hanok("stop", "web", "--timeout", "2.5").returncode == 0
    assert api.asked[-1].json == {"force": False, "timeout": 2.5}
    assert hanok("rm", "-f", "web").returncode == 0
    assert hanok("delete", "web").returncode == 0
    assert api.asked[-1].target == "/v1/vms/web?force=false"


def exec_view(status: int = 0, out: bytes = b"", err: bytes = b"") -> dict[str, object]:
    return {
        "exit_status": status,
        "stdout": base64.b64encode(out).decode(),
        "stderr": base64.b64encode(err).decode(),
        "truncated": False,
    }


@pytest.mark.parametrize(
    "words",
    [
        ("exec", "web", "--", "sh", "-c", "x --json"),
        ("exec", "web", "sh", "-c", "x --json"),
        ("exec", "--timeout", "7", "web", "sh", "-c", "x --json"),
        ("exec", "web", "--timeout", "7", "--", "sh", "-c", "x --json"),
        ("exec", "web", "--timeout=7", "sh", "-c", "x --json"),
    ],
)
def test_exec_gives_the_guest_all_words(api: StandIn, hanok: Hanok, words: tuple[str, ...]) -> None:
    api.on("POST", "vms/web/exec", exec_view(7, b"out\xff\n", b"err\n"))
    done = hanok(*words)
    assert done.returncode == 7
    assert (done.stdout, done.stderr) == ("out\ufffd\n", "err\n")
    asked = api.only("POST", "vms/web/exec").json
    assert asked["command"] == ["sh", "-c", "x --json"]
    assert asked["timeout"] == (7 if len(words) > 6 or "--timeout=7" in words else 3600)


def test_exec_pipes_its_input(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "vms/web/exec", exec_view())
    hanok("exec", "web", "--", "cat", stdin=b"\x00some\xffbytes")
    assert base64.b64decode(api.asked[-1].json["input"]) == b"\x00some\xffbytes"
    hanok("exec", "-n", "web", "--", "cat", stdin=b"unread")
    assert api.asked[-1].json["input"] is None
    done = hanok("exec", "web", "--", "cat", stdin=b"x" * 800_000)
    assert done.returncode == 2
    assert "hanok cp" in done.stderr


def test_exec_for_programs(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "vms/web/exec", exec_view(3, b"6.1\n"))
    done = hanok("exec", "web", "--json", "--", "uname", "-r")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert found["exit_status"] == 3
    assert found["stdout"] == "6.1\n"
    assert base64.b64decode(found["stdout_base64"]) == b"6.1\n"


def test_logs_and_events(api: StandIn, hanok: Hanok) -> None:
    pieces = Answer(pieces=lambda: iter([b"one\r\ntw\xc3", b"\xb6\nthree"]))
    api.add("GET", "vms/web/logs?follow=false&lines=3", pieces)
    assert hanok("logs", "web", "-n", "3").stdout == "one\r\ntwö\nthree"
    found = json.loads(hanok("logs", "web", "-n", "3", "--json").stdout)
    assert found == {"name": "web", "lines": ["one", "twö", "three"]}
    api.stream("GET", "events?follow=false", ndjson(recorded.EVENT, recorded.EVENT))
    assert "vm web" in hanok("events").stdout
    lines = hanok("events", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [recorded.EVENT] * 2


def test_copy_by_the_agent(api: StandIn, hanok: Hanok, tmp_path: Path) -> None:
    refused = recorded.problem("unsupported", 422, "web has no SSH server")
    api.on("GET", "vms/web/ssh", refused, status=422)
    api.add("GET", "vms/web/file?path=%2Fetc%2Fmotd", Answer(body=b"\x00hello"))
    assert hanok("cp", "web:/etc/motd", str(tmp_path)).returncode == 0
    assert (tmp_path / "motd").read_bytes() == b"\x00hello"
    source = tmp_path / "page"
    source.write_bytes(b"page\n")
    source.chmod(0o640)
    target = "vms/web/file?path=%2Fsrv%2Fpage&mode=416"
    api.add("PUT", target, Answer(204))
    assert hanok("cp", str(source), "web:/srv/").returncode == 0
    assert api.only("PUT", target).body == b"page\n"


def test_a_broken_download_leaves_the_target_alone(
    api: StandIn, hanok: Hanok, tmp_path: Path
) -> None:
    api.add("GET", "vms/web/file?path=%2Fmotd", Answer(body=b"half", truncate=True))
    target = tmp_path / "motd"
    target.write_text("before")
    done = hanok("cp", "--agent", "web:/motd", str(target))
    assert done.returncode == 1
    assert "went away" in done.stderr
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "words",
    [("cp", "a", "b"), ("cp", "web:/a", "db:/b"), ("cp", "--agent", "/no/such", "web:/a")],
)
def test_copy_refuses_nonsense(hanok: Hanok, words: tuple[str, ...]) -> None:
    done = hanok(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_fit_says_what_stops_the_next(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "fit", recorded.FIT)
    done = hanok("fit", "--memory", "256M")
    assert "35 more VMs fit" in done.stdout
    assert "lacks 128 MiB of memory" in done.stdout
    assert api.asked[-1].json == {"cpus": 1, "memory": "256M", "disk": "4G"}
    assert json.loads(hanok("fit", "--json").stdout) == recorded.FIT
    api.on("POST", "fit", {**recorded.FIT, "count": 1})
    assert hanok("fit").returncode == 0  # the answer before is the first one, once more
    assert "1 more VM fits (1 vCPU, 512M memory, 4G disk each)." in hanok("fit").stdout


def test_fit_says_what_a_clone_costs(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "fit", recorded.FIT_TEMPLATE)
    said = hanok("fit", "--template", "base").stdout.splitlines()
    assert api.asked[-1].json == {"template": "base"}
    assert said[:4] == [
        "35 more clones of base fit.",
        "The next one lacks 128 MiB of memory.",
        "One more takes 40 MiB of memory now (measured) and can come to take 320 MiB.",
        "Policy guaranteed: all that it can come to take is kept for it.",
    ]
    assert json.loads(hanok("fit", "--template", "base", "--json").stdout) == recorded.FIT_TEMPLATE


def test_fit_says_that_a_cost_was_not_measured(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "fit", {**recorded.FIT_TEMPLATE, "measured": False})
    said = hanok("fit", "--template", "base").stdout.splitlines()
    assert said[2] == (
        "One more takes 40 MiB of memory now (an estimate: none has run yet)"
        " and can come to take 320 MiB."
    )


def test_fit_marks_the_policy_shared(api: StandIn, hanok: Hanok) -> None:
    found = {**recorded.FIT_TEMPLATE, "policy": "shared", "cost_now": None}
    api.on("POST", "fit", found)
    said = hanok("fit", "--template", "base").stdout.splitlines()
    assert said[2] == "One more takes 320 MiB of memory, overhead included."
    assert said[3].startswith("Policy SHARED: not all of that is kept for it")
    lacking = {"limit": "real-memory", "by_resource": {"real-memory": 35}}
    api.answers.clear()
    api.on("POST", "fit", {**found, **lacking})
    assert "The next one lacks 128 MiB of real memory." in hanok("fit").stdout
    refused = hanok("fit", "--template", "base", "--memory", "1G")
    assert refused.returncode == 2
    assert "--template says the shape" in refused.stderr


def test_host_show_marks_the_policy_shared(api: StandIn, hanok: Hanok) -> None:
    api.on("GET", "host", recorded.HOST_SHARED)
    shown = hanok("host", "show").stdout
    policy = r"SHARED: memory may be sold 4 times, 2 GiB is kept really free"
    assert re.search(rf"^policy +{policy}$", shown, re.M)
    assert re.search(r"^sold +30 GiB of memory to what is up", shown, re.M)
    assert re.search(r"^used +8 GiB really used by them now$", shown, re.M)
    assert re.search(r"^shared +5 GiB saved because", shown, re.M)


def test_host_show_tells_how_a_type_1_hypervisor_divides_the_host(
    api: StandIn, hanok: Hanok
) -> None:
    share = {
        "memory": 68719476736, "free": 42949672960, "cpus": 32, "scheduler": "credit2",
        "capabilities": ["pv", "hvm"], "own_memory": 4294967296, "own_cpus": 4,
        "own_cpu_seconds": 12.5,
    }  # fmt: skip
    facts = {**recorded.HOST["hypervisors"][0], "name": "xen", "type": 1, "share": share}
    api.on("GET", "host", {**recorded.HOST, "hypervisors": [facts]})
    shown = hanok("host", "show").stdout
    assert "(Type 1)" in shown
    assert "credit2" in shown
    assert "4.0 GiB, 4 vCPUs" in shown or "4 GiB, 4 vCPUs" in shown
    assert "40" in shown


def test_host_show_of_the_policy_guaranteed(api: StandIn, hanok: Hanok) -> None:
    host = {**recorded.HOST, "memory_policy": "guaranteed", "sold": 671088640}
    api.on("GET", "host", host)
    shown = hanok("host", "show").stdout
    assert re.search(r"^policy +guaranteed: each VM can use all of its memory$", shown, re.M)
    assert "640 MiB of memory to what is up" in shown
    assert "really used" not in shown


def test_images_and_networks_are_made_and_deleted(api: StandIn, hanok: Hanok) -> None:
    built = recorded.operation("build", "micro", state="done", result={"id": "0f3a"})
    api.on("POST", "images/build", built, status=202)
    assert json.loads(hanok("image", "build", "micro", "--json").stdout) == {"id": "0f3a"}
    hanok("image", "build", "debian:12", "--package", "nginx")
    assert api.asked[-1].json == {"image": "debian:12", "packages": ["nginx"]}
    api.add("DELETE", "images/debian:12", Answer(204))
    assert hanok("image", "delete", "debian:12").stdout == "debian:12 is deleted\n"
    api.on("POST", "networks", recorded.NETWORK_VIEW, status=201)
    assert hanok("network", "create", "default", "--no-outward").returncode == 0
    assert api.asked[-1].json == {"name": "default", "subnet": None, "outward": False}
    api.add("DELETE", "networks/default", Answer(204))
    assert hanok("network", "rm", "default", "gone").returncode == 1


def test_completion_of_commands_options_and_names(api: StandIn, hanok: Hanok) -> None:
    api.on("GET", "vms", [recorded.vm_view("web"), recorded.vm_view("db")])

    def complete(words: str) -> list[str]:
        hanok.environ = {
            "_HANOK_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        return [line.partition(",")[2] for line in hanok().stdout.splitlines()]

    assert {"lab", "list", "logs"} == set(complete("hanok l"))
    assert complete("hanok show w") == ["web"]
    assert "--publish" in complete("hanok run --pu")
    assert complete("hanok network cr") == ["create"]
    api.on("GET", "templates", [recorded.template_view("base"), recorded.template_view("old")])
    assert complete("hanok clone b") == ["base"]
    assert complete("hanok template delete base o") == ["old"]
    assert complete("hanok template create x --from w") == ["web"]
    assert complete("hanok fit --template ol") == ["old"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(hanok: Hanok, shell: str) -> None:
    done = hanok("completion", shell)
    assert done.returncode == 0
    assert "_HANOK_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lst",), "Did you mean 'list'?"),
        (("list", "--jsn"), "--json"),
        (("network", "crate"), "Did you mean 'create'?"),
        (("run", "micro"), "--name"),
        (("proxy", "web", "70000"), "65535"),
        (("clone", "base"), "--name"),
        (("clone", "base", "--name", "x", "--linked", "--full"), "exclude each other"),
        (("clone", "base", "--name", "x", "--count", "many"), "--count"),
        (("template", "create", "base"), "--from"),
        (("template", "show", ""), "is no name"),
        (("completion", "tcsh"), "bash"),
        (("show", ""), "is no name"),
        (("show", ".."), "is no name"),
    ],
)
def test_wrong_usage_has_status_2(hanok: Hanok, words: tuple[str, ...], said: str) -> None:
    done = hanok(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert json.loads(hanok(*words, "--json").stderr)["code"] == "invalid-input"


def test_help_names_every_command_and_option(hanok: Hanok) -> None:
    from hanok.cli.main import cli

    top = hanok("--help")
    assert top.returncode == 0
    groups = []
    for name in cli.known:
        assert re.search(rf"^  {name} ", top.stdout, re.M)
        shown = hanok(name, "-h")
        assert shown.returncode == 0, name
        assert shown.stdout.startswith(f"Usage: hanok {name}")
        if "COMMAND [ARGS]" in shown.stdout:
            groups.append(name)
        else:
            assert "--json" in shown.stdout, name
            assert "Examples:" in shown.stdout, name
    expected = ["disk", "template", "image", "network", "assess", "plan", "host", "lab", "remote"]
    expected += ["operations", "token"]
    assert groups == expected
    assert hanok().returncode == 2


def test_every_lazy_command_exists_and_takes_json() -> None:
    import click

    from hanok.cli.base import LazyGroup
    from hanok.cli.main import cli

    def check(group: LazyGroup) -> None:
        context = click.Context(group)
        for name, lazy in group.known.items():
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, LazyGroup):
                check(command)
            else:
                assert any("--json" in param.opts for param in command.params), lazy

    check(cli)


def test_version_starts_no_daemon(hanok: Hanok) -> None:
    assert json.loads(hanok("version", "--json").stdout)["daemon"] is None
    assert list(hanok.home.iterdir()) == []
    assert hanok("--version").stdout.startswith("hanok ")


@pytest.mark.parametrize(
    ("home", "field"), [("relative/path", "HANOK_HOME"), ("/" + "x" * 60, "HANOK_HOME")]
)
def test_a_bad_data_directory_is_bad_input(hanok: Hanok, home: str, field: str) -> None:
    hanok.environ = {"HANOK_HOME": home}
    done = hanok("list", "--json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["field"] == field


def test_an_answer_that_is_no_http(hanok: Hanok, home: Path) -> None:
    import socket
    import threading

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "hanokd.sock"))
        listener.listen()

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(b"SSH-2.0-nothing\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        done = hanok("list")
        thread.join()
    assert done.returncode == 1
    assert "does not speak HTTP" in done.stderr


@pytest.mark.parametrize("on_path", [True, False])
def test_what_to_try_can_be_typed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_path: bool
) -> None:
    from hanok.cli.base import program_name

    program = tmp_path / ".venv/bin/hanok"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(program)])
    monkeypatch.setenv("PATH", str(program.parent) if on_path else "/nonexistent")
    assert program_name() == ("hanok" if on_path else ".venv/bin/hanok")
    monkeypatch.chdir("/")
    assert program_name() == ("hanok" if on_path else str(program).lstrip("/"))
