"""Run a verb as a Ray job: upload the code, start the command on the cluster, follow its log to the end.

The same command submitted twice is one job: the job id derives from the command and the code, and a job with this id
is followed instead of started.
"""

import asyncio
import json
import logging
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import aiohttp
import yaml
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.upload import (
    UNREADABLE,
    digest,
    in_upload,
    plugin_in_upload,
    plugins_in_override,
    plugins_of,
    runtime_env,
    top_of,
)
from pft_core.errors import UserError, did_you_mean

POLL_SECONDS = 0.5
AGENT_SECONDS = 60.0
CLUSTER_SILENT_S = 10.0
BARE_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})", re.ASCII)
ADVICE = "give the dashboard's URL: --address http://HOST:8265"
NO_ANSWER = (OSError, RuntimeError, aiohttp.ClientError)  # raised by Ray's client if nothing answers
SHOWN_LINES = 20
INPUTS = ("data", "validation_data", "model")
Role = Literal["recipe", "plugin", "override", "output", "path"]


@dataclass(frozen=True)
class GivenParameter:
    """A parameter in a command. option: the option's word, "" for an argument. values: none for a flag."""

    name: str
    option: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class JobVerb:
    """A verb that runs as a job, as described by the command line.

    parse: parses the words after the verb; returns every argument, even one without values. roles: role of the values
    of each parameter, by name. stores: how the verb takes the folder for results, as an override or an option.
    commands: the commands of a group.
    """

    parse: Callable[[list[str]], list[GivenParameter]]
    roles: Mapping[str, Role]
    stores: Literal["override", "option"] | None = None
    commands: Mapping[str, "JobVerb"] = field(default_factory=dict)


def run(
    command: list[str], *, address: str | None, verbs: Mapping[str, JobVerb], plugins: Sequence[str] = ()
) -> dict[str, Any]:
    """Submit `pft <command>` and follow it. Result: submission_id, status, and the command's own result.

    verbs: the verbs that run as jobs, by name. plugins: files or modules to add to those of the command.
    address: URL of the dashboard; default RAY_API_SERVER_ADDRESS or RAY_ADDRESS. The token of this machine, if any, is
    sent along: RAY_AUTH_TOKEN, or the token file of a local Ray.
    Raises UserError if the command is not a verb, no cluster answers, or a file cannot be uploaded.
    """
    if command[0] not in verbs:
        raise UserError(f"submit: {command[0]!r} is not a verb that runs as a job.{did_you_mean(command[0], verbs)}")
    verb = verbs[command[0]]
    sent = for_the_cluster(with_plugins(command, verb, plugins), verb)
    client = connect(address)
    submission_id = submit_once(client, sent)
    status = follow(client, submission_id)
    result = {"submission_id": submission_id, "status": status.value}
    if status == JobStatus.SUCCEEDED:
        return result | {"result": last_json_line(client.get_job_logs(submission_id))}
    message = client.get_job_info(submission_id).message or ""
    return result | {"message": "\n".join(message.splitlines()[-SHOWN_LINES:])}


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client of a cluster that answers. Raises UserError."""
    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers the environment to the argument
    place = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "(none given)"
    refuse_silent(place)
    # `ray start` enables token checks if a token exists; a client does so only on request, and logs it.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(
            f"cluster at {place}: refused the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to its token"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise UserError(f"cluster at {place}: {error}: {ADVICE}") from None


def refuse_silent(address: str) -> None:
    """Raise UserError if nothing listens at a bare HOST:PORT: Ray's client would wait for most of a minute."""
    if ":" not in address or "://" in address:
        return
    try:
        if (match := BARE_ADDRESS.fullmatch(address)) is None:
            raise OSError("not an address")
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), timeout=10).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"cluster at {address}: {error}: {ADVICE}") from None


def with_plugins(command: list[str], verb: JobVerb, plugins: Sequence[str]) -> list[str]:
    """Add plugins to a command: as options right after the verb, before any `--`, or as a final override."""
    more = plugin_arguments(command, verb, plugins)
    return [command[0], *more, *command[1:]] if "plugin" in verb.roles.values() else [*command, *more]


def plugin_arguments(command: list[str], verb: JobVerb, plugins: Sequence[str]) -> list[str]:
    """Return the arguments that add plugins to a verb: its option, or an override that includes the present ones."""
    if not plugins:
        return []
    if "plugin" in verb.roles.values():
        return [word for plugin in plugins for word in ("--plugin", plugin)]
    if verb.stores != "override":
        raise UserError(f"submit: --plugin: {command[0]} takes no plugins: leave it out")
    return [f"plugins={json.dumps([*_own_plugins(verb.parse(command[1:]), verb), *plugins])}"]


def _own_plugins(given: list[GivenParameter], verb: JobVerb) -> list[str]:
    """Return the plugins of a command: the last override's, else the recipe's."""
    overrides = [word for word in _values_of("override", given, verb) if word.startswith("plugins=")]
    if overrides:
        return plugins_in_override(overrides[-1])
    return [plugin for recipe in _values_of("recipe", given, verb) for plugin in plugins_of(Path(recipe))]


def _values_of(role: Role, given: list[GivenParameter], verb: JobVerb) -> list[str]:
    return [value for parameter in given if verb.roles.get(parameter.name) == role for value in parameter.values]


def for_the_cluster(command: list[str], verb: JobVerb) -> list[str]:
    """Rewrite the paths of a command: uploaded recipes and plugins relative, others absolute on shared storage.

    A relative folder would lie in the job's copy of the code, which is deleted with the job. Raises UserError.
    """
    name, *rest = command
    if verb.commands:
        return [name, *for_the_cluster(rest, _command_of(name, rest, verb.commands))]
    given = _with_storage(verb.parse(rest), verb)
    return [name, *_words([_with_paths_rewritten(parameter, verb) for parameter in given])]


def _command_of(group: str, rest: list[str], commands: Mapping[str, JobVerb]) -> JobVerb:
    if rest and rest[0] in commands:
        return commands[rest[0]]
    hint = did_you_mean(rest[0], commands) if rest else ""
    raise UserError(f"submit: {shlex.join([group, *rest[:1]])}: expected {group} {' or '.join(commands)}.{hint}")


def _with_storage(given: list[GivenParameter], verb: JobVerb) -> list[GivenParameter]:
    """Add the folder for results, since its default is relative: the recipe's storage, else runs.

    A storage= of the command itself comes later and wins.
    """
    if verb.stores == "override":
        stores = [
            str(place) for name in _values_of("recipe", given, verb) if (place := top_of(Path(name)).get("storage"))
        ]
        first = (f"storage={stores[0] if stores else 'runs'}", *_inputs_of(_values_of("recipe", given, verb)))
        return [replace(g, values=(*first, *g.values)) if verb.roles.get(g.name) == "override" else g for g in given]
    if verb.stores == "option" and all(parameter.option != "--storage" for parameter in given):
        return [*given, GivenParameter("storage", "--storage", ("runs",))]
    return given


def _inputs_of(recipes: list[str]) -> list[str]:
    """Return overrides for a recipe's relative data and model paths, which a job would look up in its code folder."""
    named = [(key, str(value)) for name in recipes for key, value in top_of(Path(name)).items() if key in INPUTS]
    return [f"{key}={value}" for key, value in named if os.path.exists(value) and not os.path.isabs(value)]


def _with_paths_rewritten(given: GivenParameter, verb: JobVerb) -> GivenParameter:
    role = verb.roles.get(given.name)
    return replace(given, values=tuple(REWRITE[role](value) for value in given.values)) if role else given


def _words(given: list[GivenParameter]) -> list[str]:
    """Return the words of a command: its arguments, then its options, repeated for each value."""
    arguments = [value for parameter in given if not parameter.option for value in parameter.values]
    options = [word for parameter in given if parameter.option for word in _option_words(parameter)]
    # After `--`, a word that starts with a dash is still an argument.
    return [*options, "--", *arguments] if any(w.startswith("-") for w in arguments) else [*arguments, *options]


def _option_words(given: GivenParameter) -> list[str]:
    return [word for value in given.values for word in (given.option, value)] or [given.option]


def _absolute(value: str) -> str:
    return str(Path(value).expanduser().resolve()) if value else value


def _absolute_if_it_exists(value: str) -> str:
    return (
        _absolute(value) if os.path.exists(os.path.expanduser(value)) else value
    )  # unlike Path.exists, accepts any length


def _rewrite_override(word: str) -> str:
    key, equals, value = word.partition("=")
    if key == "plugins" and equals:
        return f"plugins={json.dumps([plugin_in_upload(plugin) for plugin in plugins_in_override(word)])}"
    if not equals:
        return word
    if value[:1] in ("[", "{"):
        return f"{key}={_rewrite_values(value)}"
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    place = _absolute if key == "storage" else _absolute_if_it_exists
    inner = value[1:-1] if is_quoted else value
    return f"{key}={placed}" if (placed := place(inner)) != inner else word


def _rewrite_values(value: str) -> str:
    """Make existing paths in a list or a section absolute; leave the rest of the text unchanged."""
    try:
        root = yaml.compose(value)
    except UNREADABLE:  # the job reports the error
        return value
    for node in sorted(_texts_in(root), key=lambda node: -node.start_mark.index):
        if node.value and (placed := _absolute_if_it_exists(node.value)) != node.value:
            value = value[: node.start_mark.index] + json.dumps(placed) + value[node.end_mark.index :]
    return value


def _texts_in(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Yield all values, but not the keys, of a nested list or section."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.CollectionNode):
        for part in node.value:
            yield from _texts_in(part[1] if isinstance(part, tuple) else part)


REWRITE: dict[Role, Callable[[str], str]] = {
    "recipe": in_upload,
    "plugin": plugin_in_upload,
    "override": _rewrite_override,
    "output": _absolute,
    "path": _absolute_if_it_exists,
}


def submit_once(client: JobSubmissionClient, command: list[str]) -> str:
    """Start the job unless one with its id is running or has succeeded; return the id to follow."""
    known = {job.submission_id: job.status for job in client.list_jobs()}
    for submission_id in attempts(job_name(command)):
        status = known.get(submission_id)
        if status is None:
            return start(client, submission_id, command)
        if status not in (JobStatus.FAILED, JobStatus.STOPPED, JobStatus.SUCCEEDED):
            print(f"{submission_id} is already running: following it", file=sys.stderr)
            return submission_id
        if status == JobStatus.SUCCEEDED and "--fresh" not in command:
            print(f"{submission_id} has already succeeded", file=sys.stderr)
            return submission_id
    raise AssertionError("attempts do not end")


def start(client: JobSubmissionClient, submission_id: str, command: list[str]) -> str:
    # This interpreter if it exists on the cluster too (same machine or shared disk), else the one on its PATH.
    python = f"$(command -v {shlex.quote(sys.executable)} || echo python)"
    entrypoint = f"{python} {shlex.join(['-m', 'pipelines.cli', *command])}"
    try:
        with runtime_env(command) as env:
            _submit(client, entrypoint, submission_id, env, deadline=time.monotonic() + AGENT_SECONDS)
        print(f"{submission_id}: {entrypoint}", file=sys.stderr)
    except RuntimeError as error:
        if "already exists" not in str(error):  # otherwise another process submitted the same job first: follow it
            raise UserError(f"the cluster refused the job: {str(error).splitlines()[0]}") from None
    return submission_id


def _submit(
    client: JobSubmissionClient, entrypoint: str, submission_id: str, env: dict[str, Any], *, deadline: float
) -> None:
    """Submit; wait for the agent of a cluster that has only just started."""
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=submission_id, runtime_env=env)
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def job_name(command: list[str]) -> str:
    """Return a job id: verb, recipe, and the digest of command, code, recipe and data."""
    words = [re.sub(r"[^A-Za-z0-9.-]+", "-", Path(word).stem) for word in command[:2]]
    return "-".join(["pft", *words, digest(command)[:8]])


def attempts(name: str) -> Iterator[str]:
    """Yield name, name-2, name-3...: Ray never accepts an id again, but a failed job must be able to restart."""
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def follow(client: JobSubmissionClient, submission_id: str) -> JobStatus:
    """Copy the job's log to stderr until the job ends; an interruption does not stop the job.

    Raises UserError if the cluster no longer answers.
    """
    while True:
        try:
            return _follow_log(client, submission_id)
        except NO_ANSWER as error:
            _wait_for_an_answer(client, submission_id, error)


def _wait_for_an_answer(client: JobSubmissionClient, submission_id: str, error: Exception) -> None:
    until = time.monotonic() + CLUSTER_SILENT_S
    while time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        with suppress(*NO_ANSWER):
            client.get_job_status(submission_id)
            return
    raise UserError(
        f"{submission_id}: the cluster no longer answers ({str(error).partition(chr(10))[0]}): start one and "
        "run the same command to continue from the stored state"
    )


def _follow_log(client: JobSubmissionClient, submission_id: str) -> JobStatus:
    async def tail() -> None:
        async for text in client.tail_job_logs(submission_id):
            print(text, end="", file=sys.stderr, flush=True)

    if client.get_job_status(submission_id).is_terminal():
        print(client.get_job_logs(submission_id), file=sys.stderr)
    else:
        asyncio.run(tail())
    while not (status := client.get_job_status(submission_id)).is_terminal():
        time.sleep(POLL_SECONDS)
    return status


def last_json_line(log: str) -> dict[str, Any] | None:
    """Return the last line of a log that is a JSON object: the verb's result, since the log also holds stderr."""
    for line in reversed(log.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except json.JSONDecodeError:
                continue
    return None
