"""Run a verb as a Ray job: upload the code, start the command on the cluster, follow its log to the end.

The same command submitted twice is one job: its id is derived from the command and the code, and an id in use is
followed.
"""

import asyncio
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.upload import digest, in_upload, plugins_of, runtime_env
from pft_core.errors import UserError, did_you_mean

POLL_SECONDS = 0.5
AGENT_SECONDS = 60.0
SHOWN_LINES = 20


@dataclass(frozen=True)
class JobVerb:
    """A verb of the command line that runs as a job, as the command line itself describes it.

    num_names: words after the verb that name a recipe or a command. path_options: options that take a path;
    plugin_options: those that take a plugin. stores: how it is told where results go: by an override, by an option.
    """

    num_names: int = 0
    path_options: tuple[str, ...] = ()
    plugin_options: tuple[str, ...] = ()
    stores: Literal["override", "option"] | None = None


def run(
    command: list[str], *, address: str | None, verbs: Mapping[str, JobVerb], plugins: Sequence[str] = ()
) -> dict[str, Any]:
    """Submit `pft <command>` and follow it. Result: submission_id, status, and the command's own result.

    verbs: those that run as jobs, by name; plugins: files or modules that the command is given besides its own.
    address: the dashboard's URL; None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS. A token is sent along where this machine
    has one: RAY_AUTH_TOKEN, or the file that a local Ray keeps.
    Raises UserError when the command is no verb, no cluster answers, or a file of it would not be uploaded.
    """
    if command[0] not in verbs:
        raise UserError(f"submit: {command[0]!r} is not a verb that runs as a job.{did_you_mean(command[0], verbs)}")
    verb = verbs[command[0]]
    sent = for_the_cluster([*command, *plugin_arguments(command, verb, plugins)], verb)
    client = connect(address)
    submission_id = submit_once(client, sent)
    status = follow(client, submission_id)
    result = {"submission_id": submission_id, "status": status.value}
    if status == JobStatus.SUCCEEDED:
        return result | {"result": last_json_line(client.get_job_logs(submission_id))}
    message = client.get_job_info(submission_id).message or ""
    return result | {"message": "\n".join(message.splitlines()[-SHOWN_LINES:])}


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client whose cluster answers. Raises UserError."""
    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets the environment win over the argument
    # `ray start` turns token checks on where a token exists; a client does so only when it is told.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(
            f"cluster at {address or 'RAY_ADDRESS'}: refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to "
            "the cluster's own"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        shown = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "(none given)"
        raise UserError(f"cluster at {shown}: {error}: give the dashboard's URL: --address http://HOST:8265") from None


def plugin_arguments(command: list[str], verb: JobVerb, plugins: Sequence[str]) -> list[str]:
    """Return the arguments that give a verb more plugins: its option, or an override that keeps the recipe's own."""
    if not plugins:
        return []
    if verb.plugin_options:
        return [word for plugin in plugins for word in (verb.plugin_options[0], plugin)]
    if verb.stores != "override":
        raise UserError(f"submit: --plugin: {command[0]} takes no plugins: leave it out")
    recipes = [Path(word) for word in command[1 : 1 + verb.num_names] if Path(word).is_file()]
    return [f"plugins={json.dumps([*(p for recipe in recipes for p in plugins_of(recipe)), *plugins])}"]


def for_the_cluster(command: list[str], verb: JobVerb) -> list[str]:
    """Rewrite paths: recipes and plugins travel with the code, all else is absolute, on storage that both sides see.

    A relative folder would lie in the job's copy of the code, which goes when the job ends. Raises UserError.
    """
    name, *rest = command
    names, arguments = rest[: verb.num_names], rest[verb.num_names :]
    if verb.stores == "override" and "storage" not in _keys_of(names):
        arguments = ["storage=runs", *arguments]  # a later storage= wins
    if verb.stores == "option" and "--storage" not in arguments:
        arguments = ["--storage", "runs", *arguments]
    return [name, *(in_upload(word) for word in names), *_placed(arguments, verb)]


def _placed(arguments: list[str], verb: JobVerb) -> Iterator[str]:
    option = ""
    for word in arguments:
        if word.startswith("--"):
            option = word
            yield word
            continue
        key, equals, value = word.rpartition("=")
        if option in verb.plugin_options or key == "plugins":
            yield _plugins_placed(key, equals, value)
            continue
        is_output = option in ("--output", "--storage") or key == "storage"
        names_a_path = bool(equals) or option in verb.path_options
        yield f"{key}{equals}{Path(value).resolve()}" if names_a_path and (is_output or Path(value).exists()) else word


def _plugins_placed(key: str, equals: str, value: str) -> str:
    """Plugins of an option, or of `plugins=[a.py, b.py]`, as the job sees them. Raises UserError."""
    if not equals:
        return in_upload(value)
    names = yaml.safe_load(value)
    placed = [in_upload(str(name)) for name in names] if isinstance(names, list) else names
    return f"{key}={json.dumps(placed)}"


def _keys_of(names: list[str]) -> set[str]:
    files = [Path(name) for name in names if Path(name).is_file()]
    return {line.partition(":")[0] for file in files for line in file.read_text(encoding="utf-8").splitlines()}


def submit_once(client: JobSubmissionClient, command: list[str]) -> str:
    """Start the job unless one with its id runs or has succeeded; return the id to follow."""
    known = {job.submission_id: job.status for job in client.list_jobs()}
    for submission_id in attempts(job_name(command)):
        status = known.get(submission_id)
        if status is None:
            return start(client, submission_id, command)
        if status not in (JobStatus.FAILED, JobStatus.STOPPED, JobStatus.SUCCEEDED):
            print(f"{submission_id} is running already: following it", file=sys.stderr)
            return submission_id
        if status == JobStatus.SUCCEEDED and "--fresh" not in command:
            print(f"{submission_id} has succeeded already", file=sys.stderr)
            return submission_id
    raise AssertionError("attempts do not end")


def start(client: JobSubmissionClient, submission_id: str, command: list[str]) -> str:
    # This very interpreter where the cluster has it too (one machine, or a shared disk), else the one on its PATH.
    python = f"$(command -v {shlex.quote(sys.executable)} || echo python)"
    entrypoint = f"{python} {shlex.join(['-m', 'pipelines.cli', *command])}"
    try:
        env = runtime_env(command)
        _submit(client, entrypoint, submission_id, env, deadline=time.monotonic() + AGENT_SECONDS)
        print(f"{submission_id}: {entrypoint}", file=sys.stderr)
    except RuntimeError as error:
        if "already exists" not in str(error):  # else another process was faster, and its job is the one to follow
            raise UserError(f"the cluster does not take the job: {str(error).splitlines()[0]}") from None
    return submission_id


def _submit(
    client: JobSubmissionClient, entrypoint: str, submission_id: str, env: dict[str, Any], *, deadline: float
) -> None:
    """Submit, and wait where a cluster has only just started and its agent has not."""
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=submission_id, runtime_env=env)
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def job_name(command: list[str]) -> str:
    """Return an id that says the verb and the recipe, and ends with the digest of command, code, recipe and data."""
    words = [re.sub(r"[^A-Za-z0-9.-]+", "-", Path(word).stem) for word in command[:2]]
    return "-".join(["pft", *words, digest(command)[:8]])


def attempts(name: str) -> Iterator[str]:
    """Yield name, name-2, name-3...: Ray never takes an id again, but a failed job should be startable again."""
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def follow(client: JobSubmissionClient, submission_id: str) -> JobStatus:
    """Copy the job's log to stderr until it ends; interrupted, the job itself goes on."""

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
    """Return the last line of a log that is a JSON object: the verb's result (the log holds stderr too)."""
    for line in reversed(log.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except json.JSONDecodeError:
                continue
    return None
