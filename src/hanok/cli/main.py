"""The command line: what commands there are, and how errors become exit statuses.

Exit statuses: 0 done, 1 failed, 2 bad input or usage, 130 Ctrl-C; ``exec`` and ``ssh`` give the
status of the guest's command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from hanok import __version__
from hanok.cli.base import Lazy, LazyGroup, Session, common_options
from hanok.errors import HanokError, InvalidInput

_INTERRUPTED = 130
_COMPLETE = "_HANOK_COMPLETE"

_SECTIONS = {
    "Stacks": {
        "up": Lazy("stack", "up", "Create and start what a stack file describes."),
        "down": Lazy("stack", "down", "Stop and delete what a stack file describes."),
    },
    "Machines": {
        "run": Lazy("run", "run", "Create and start a VM."),
        "list": Lazy("listing", "list_vms", "List the VMs (also: ls)."),
        "show": Lazy("listing", "show", "Show everything about a VM."),
        "set": Lazy("change", "set_vm", "Change a VM: its size, networks, ports, name."),
        "disk": Lazy("change", "disk", "Attach and detach data disks."),
        "start": Lazy("machines", "start", "Start stopped VMs."),
        "stop": Lazy("machines", "stop", "Ask guests to power off; force them after a time."),
        "restart": Lazy("machines", "restart", "Stop and start VMs."),
        "pause": Lazy("machines", "pause", "Freeze VMs in memory."),
        "resume": Lazy("machines", "resume", "Let paused VMs go on."),
        "export": Lazy("exports", "export", "Save a stopped VM's disk as one file."),
        "delete": Lazy("machines", "delete", "Delete VMs and their disks (also: rm)."),
    },
    "Templates and clones": {
        "template": Lazy("templates", "template", "Freeze VMs as templates; list and delete them."),
        "clone": Lazy("clone", "clone", "Make VMs of a template, running at once."),
    },
    "Guests": {
        "exec": Lazy("execute", "execute", "Run a command in a guest."),
        "ssh": Lazy("ssh", "ssh", "Log in to a guest by SSH."),
        "cp": Lazy("copy", "copy", "Copy files to or from a guest."),
        "console": Lazy("console", "console", "Use a guest's serial console, or its screen."),
        "screenshot": Lazy("screen", "screenshot", "Save what a VM's screen shows, as PNG."),
        "logs": Lazy("logs", "logs", "Print what a guest wrote to its console."),
        "proxy": Lazy("console", "proxy", "Connect stdin and stdout to a guest's TCP port."),
    },
    "Images and networks": {
        "image": Lazy("images", "image", "List, build, inspect and delete images."),
        "network": Lazy("networks", "network", "List, create, show and delete networks."),
    },
    "From servers to VMs": {
        "assess": Lazy("assess", "assess", "Measure servers, or read what others measured."),
        "plan": Lazy("plan", "plan", "Plan which VMs go on which hosts, from measured load."),
        "apply": Lazy("apply", "apply", "Make the VMs of a plan on its hosts."),
    },
    "Hosts": {
        "host": Lazy("host", "host", "Show this host, or probe its hypervisors again."),
        "fit": Lazy("host", "fit", "Tell how many more VMs or clones fit."),
        "lab": Lazy("lab", "lab", "Make hosts of nothing: VMs that run this Hanok."),
        "remote": Lazy("remotes", "remote", "Add, list, use and remove remote hosts."),
        "events": Lazy("logs", "events", "Print what happened, or follow what happens."),
        "operations": Lazy("operations", "operations", "List, show, follow and cancel long work."),
        "token": Lazy("tokens", "token", "Say who may use this host over the network."),
        "serve": Lazy("system", "serve", "Run the daemon in the foreground."),
        "version": Lazy("system", "version", "Print the versions of Hanok and its daemon."),
        "completion": Lazy("system", "completion", "Print what makes a shell complete commands."),
    },
}
_EXAMPLES = (
    "hanok run micro --name first           # a small machine, ready in seconds",
    "hanok exec first -- uname -a           # run something in it",
    "hanok list                             # what runs here",
    "hanok template create t --from first   # freeze it; it goes on",
    "hanok clone t --count 9 --name n-{n}   # nine more like it, at once",
    "hanok delete --force first             # and gone",
    "hanok up examples/three-servers.yaml   # several machines from one file",
)


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    aliases={"ls": "list", "rm": "delete"},
    examples=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, message="hanok %(version)s")
@common_options
def cli() -> None:
    """Turn this server into virtual machines.

    Each command has its own help: hanok COMMAND --help. A daemon does the work; it is started
    when none runs, and machines go on without it.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: sys.argv) and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    session = Session()
    try:
        result = _invoke(args, session)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except HanokError as error:
        session.out.error(error)
        return error.exit_status
    except click.UsageError as error:
        return _show_usage_error(session, error, args)
    except click.ClickException as error:
        session.out.error(HanokError(error.format_message()))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read has enough; without this, flushing at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _invoke(args: list[str], session: Session) -> object:
    """Run the command that ``args`` name, or answer the shell that completes one."""
    if _COMPLETE in os.environ:
        return cli.main(args, prog_name="hanok", complete_var=_COMPLETE, obj=session)
    # Not by cli.main: that prints an empty line of its own at Ctrl-C, even for programs.
    try:
        with cli.make_context("hanok", args, obj=session) as context:
            return cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code


def _show_usage_error(session: Session, error: click.UsageError, args: Sequence[str]) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    before_guest = args[: args.index("--")] if "--" in args else args
    if "--json" in before_guest:
        session.out.as_json = True
    path = error.ctx.command_path if error.ctx is not None else "hanok"
    usage = f"{path} --help"
    session.out.error(
        InvalidInput(error.format_message(), field=_field_of(error), hint=f"see: {usage}")
    )
    return error.exit_code


def _field_of(error: click.UsageError) -> str | None:
    if isinstance(error, click.NoSuchOption):
        return error.option_name
    if isinstance(error, click.BadParameter) and error.param is not None:
        if isinstance(error.param, click.Option):
            return max(error.param.opts, key=len)
        return error.param.make_metavar(error.ctx) if error.ctx is not None else error.param.name
    return None
