"""Tests of hostile requests: whatever a client sends, it gets an error message, and the engine continues."""

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from pft_core.errors import UserError
from pft_core.policies.pretrained import load_tokenizer
from pipelines.serve.http.keys import add_key
from pipelines.serve.policies.catalog import Catalog, Policy
from tests.serving import LocalServer, serve_config, write_policy

CHOOSE = {"scenario": "The town has a plan", "options": ["go", "stay"], "preference": "Bold"}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/choose": CHOOSE,
    "/v1/score": {"scenario": "The plan", "answers": ["go", "stay"], "preferences": [None, "Bold"]},
    "/v1/compare": {"scenario": "The plan", "options": ["go", "stay"], "axis": "Risk", "weight": 0.5, "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "What now ?"}], "max_tokens": 2, "n": 1},
    "/v1/completions": {"prompt": "The plan", "max_tokens": 2, "temperature": 0, "stop": ["."], "stream": False},
}
OPERATIONS = [f"POST {route}" for route in ROUTES]
READ = ("/healthz", "/readyz", "/version", "/metrics", "/v1/examples", "/v1/models", "/v1/models/{model}")
OPERATIONS += [f"GET {route}" for route in READ]
OPEN = ("/healthz", "/readyz")
TIMEOUT_S = 30.0  # a request takes milliseconds, so one that takes longer hangs


@dataclass
class RunningServer:
    """A running server with keys, a client, and the usual answer."""

    url: str
    client: httpx.Client
    headers: dict[str, str]
    schema: Any
    usual: Any

    def post(self, route: str, body: bytes) -> httpx.Response:
        return self.client.post(route, content=body, headers={"Content-Type": "application/json"})

    def answers_as_usual(self) -> bool:
        return bool(self.client.post("/v1/choose", json=CHOOSE).json()["options"] == self.usual)


@pytest.fixture(scope="module")
def served(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("hostile")
    policy = write_policy(folder / "policy", tiny_qwen2, seed=1)
    write_policy(folder / "root" / "early", tiny_qwen2, seed=2)
    headers = {"Authorization": f"Bearer {add_key(folder / 'keys.json', 'tests')}"}
    config = serve_config(
        policy,
        folder / "cache",
        keys=str(folder / "keys.json"),
        store={"root": str(folder / "root")},
        limits={"max_tokens": 8, "default_max_tokens": 4, "timeout_s": TIMEOUT_S},
    )
    with LocalServer(config).running() as server, httpx.Client(
        base_url=server.url, headers=headers, timeout=TIMEOUT_S
    ) as client:  # fmt: skip
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=headers)
        usual = client.post("/v1/choose", json=CHOOSE).json()["options"]
        yield RunningServer(server.url, client, headers, schema, usual)


def examples(count: int, *, derandomize: bool = True) -> Any:
    """Return settings for examples that share a server; they are the same in each run, except in slow tests."""
    return settings(max_examples=count, deadline=None, derandomize=derandomize, suppress_health_check=list(HealthCheck))


# --- requests generated from the OpenAPI document


def operations(schema: Any) -> dict[str, Any]:
    results = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in results}


def send(operation: Any, served: RunningServer, count: int, *, derandomize: bool = True) -> None:
    """Send requests that fit the schema and requests that do not, with and without a key."""
    strategy = st.one_of(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)

    @examples(count, derandomize=derandomize)
    @given(case=strategy, keyed=st.booleans())
    def run(case: Any, keyed: bool) -> None:
        headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
        case.headers = headers
        response = case.call(base_url=served.url, headers=served.headers if keyed else {}, timeout=TIMEOUT_S)
        assert response.status_code < 500, (response.status_code, response.text[:500])
        if not keyed and operation.path not in OPEN:
            assert response.status_code == 401
        if response.status_code >= 400:
            assert response.json()["error"]["message"]

    run()


def test_the_schema_names_every_route(served: RunningServer) -> None:
    assert sorted(operations(served.schema)) == sorted(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_generated_request_causes_a_server_error_or_passes_without_a_key(served: RunningServer, name: str) -> None:
    send(operations(served.schema)[name], served, 20)
    assert served.answers_as_usual()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_none_of_many_generated_requests_causes_a_server_error(served: RunningServer, name: str) -> None:
    send(operations(served.schema)[name], served, 500, derandomize=False)
    assert served.answers_as_usual()


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/docs", "/nowhere", "/v1/choose", "/metrics", "/%68ealthz/x"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "HEAD", "PROPFIND"])
def test_no_method_and_no_path_passes_without_a_key(served: RunningServer, method: str, path: str) -> None:
    assert httpx.request(method, served.url + path, timeout=TIMEOUT_S).status_code == 401
    assert served.client.request(method, path).status_code < 500


# --- names


PIECES = (
    "..", ".", "/", "//", "\\", "../", "..\\", "../outside", "../policy", "/etc/passwd", "~", "$HOME", "*", "?", "#",
    "%2e%2e", "%2f", "%00", "%c0%ae", "..%2foutside", "\0", "\n", "\r\n", "\t", " ", "\u202e", "\ufeff", "\ud800",
    "\uff0e\uff0e", "\u2215", "e\u0301", "\uff50olicy", "pol\u0456cy", "policy", "early", "outside", "linked", "root",
    "base", "steered", "slider", "cache", "model_ref.json", "adapter", "@", "@champion", "@first", "@latest",
    "@0123456789ab", "@ABCDEF012345", "@@", "s3://bucket/x", "models:/policy@champion", "file:///etc/passwd",
    "http://169.254.169.254/", "\\\\host\\share", "C:", "CON", "-", "_", "a", "0", "A", "x" * 70, "x" * 5000, "{}",
    "{{7*7}}", "%s", "'; --", "<script>", "None", "null", "NaN", "-1",
)  # fmt: skip


def hostile_names(seed: int) -> Iterator[str]:
    """Yield endless names, some of which are names of policies."""
    rng = random.Random(seed)
    while True:
        name = "".join(rng.choices(PIECES, k=rng.randint(1, 4)))
        if rng.random() < 0.3:
            place = rng.randrange(len(name))
            name = name[:place] + chr(rng.choice([rng.randrange(128), rng.randrange(0x110000)])) + name[place + 1 :]
        yield name


class FileAudit:
    """Records which files are opened while it is on. An audit hook cannot be removed, so each process has one."""

    EVENTS = ("open", "os.listdir", "os.scandir", "glob.glob", "os.mkdir", "os.remove", "os.rename", "socket.connect")

    def __init__(self) -> None:
        self.on = False
        self.touched: set[str] = set()
        sys.addaudithook(self._record)

    def _record(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in self.EVENTS:
            self.touched.add(os.fsdecode(arguments[0]) if event != "socket.connect" else "socket")

    @contextmanager
    def recording(self) -> Iterator[set[str]]:
        self.touched = set()
        self.on = True
        try:
            yield self.touched
        finally:
            self.on = False


AUDIT = FileAudit()


@pytest.fixture(scope="module")
def guarded(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, Path]:
    """A catalog with a root folder, and the folder around it with policies that no name may reach."""
    folder = tmp_path_factory.mktemp("names")
    policy = write_policy(folder / "policy", tiny_qwen2, seed=1)
    for place in ("root/early", "outside", "policyoutside"):
        write_policy(folder / place, tiny_qwen2, seed=2)
    (folder / "root" / "linked").symlink_to(folder / "outside")
    (folder / "root" / "model_ref.json").write_text("{}")
    return Catalog(serve_config(policy, folder / "cache", store={"root": str(folder / "root")}), load_tokenizer), folder


def resolve(catalog: Catalog, name: str) -> Policy | str:
    try:
        return catalog.resolve(name)
    except UserError as error:
        return str(error)


@pytest.fixture
def stat_paths(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The paths passed to os.stat, which raises no audit event."""
    places: set[str] = set()
    stat = os.stat

    def recording_stat(path: Any, *arguments: Any, **more: Any) -> os.stat_result:
        if AUDIT.on:
            places.add(str(path))
        return stat(path, *arguments, **more)

    monkeypatch.setattr(os, "stat", recording_stat)
    return places


def refuse_names(guarded: tuple[Catalog, Path], stat_paths: set[str], count: int, seed: int) -> None:
    catalog, folder = guarded
    expected = {catalog.resolve(name).id for name in ("policy", "base", "early")}
    names = hostile_names(seed)
    with AUDIT.recording() as touched:
        answers = [resolve(catalog, next(names)) for _ in range(count)]
    ids = {answer.id for answer in answers if isinstance(answer, Policy)}
    assert ids <= expected
    assert len(ids) > 1  # some generated names exist
    assert max(len(answer.encode()) for answer in answers if isinstance(answer, str)) < 1000
    # The target of `linked` is looked up, to see that it is outside the root, but it is not opened.
    target = folder / "outside" / "model_ref.json"
    assert str(target) not in touched
    allowed = tuple(str(place) + os.sep for place in (*(folder / n for n in ("policy", "root", "cache")), target))
    places = {os.path.normpath(place) + os.sep for place in touched | stat_paths}
    assert len(stat_paths) > 5
    assert [place for place in places if not place.startswith(allowed)] == []


def test_the_audit_records_a_file_outside_the_root(guarded: tuple[Catalog, Path]) -> None:
    with AUDIT.recording() as touched:
        (guarded[1] / "outside" / "model_ref.json").read_bytes()
    assert touched == {str(guarded[1] / "outside" / "model_ref.json")}


def test_no_name_reaches_a_file_outside_the_root(guarded: tuple[Catalog, Path], stat_paths: set[str]) -> None:
    refuse_names(guarded, stat_paths, 2_000, seed=0)


@pytest.mark.slow
def test_none_of_very_many_names_reaches_a_file_outside_the_root(
    guarded: tuple[Catalog, Path], stat_paths: set[str]
) -> None:
    refuse_names(guarded, stat_paths, 100_000, seed=1)


def assert_refused_or_known(response: httpx.Response, name: str) -> None:
    assert response.status_code < 500, name
    if response.is_redirect:  # the URL ended in a slash
        return
    body = response.json()
    if response.status_code == 200:
        assert body.get("model", body.get("id", "list")).partition("@")[0] in ("policy", "base", "early", "list"), name
    else:
        assert body["error"]["message"], name


def test_hostile_names_over_http_are_unknown_or_those_of_policies(served: RunningServer) -> None:
    names = hostile_names(seed=2)
    for _ in range(200):
        name = next(names)
        assert_refused_or_known(served.post("/v1/choose", json.dumps({**CHOOSE, "model": name}).encode()), name)
        path = "/v1/models/" + quote(name.encode("utf-8", "surrogatepass")[:2000], safe="")
        assert_refused_or_known(served.client.get(path), name)
    assert served.answers_as_usual()


# --- bodies


TEXTS = st.sampled_from(["", " ", "\0", "\ud800", "a\udfff", "\u202e", "<eos>", "<bos><eos>", "{", "\n" * 50, "Bold"])
NUMBERS = st.sampled_from([0, -1, 1, 2, 0.5, -0.0, 1e-310, 5e-324, 1e308, 2**31, 2**63, 2**64, 10**400, 1e999, -1e999])
LEAVES = st.none() | st.booleans() | NUMBERS | st.just(float("nan")) | st.floats() | st.integers() | TEXTS | st.text()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.text(), inner, max_size=3)
)
KEYS = (
    "model", "preference", "scenario", "options", "answers", "preferences", "forms", "axis", "weight", "max_tokens",
    "temperature", "top_p", "n", "seed", "stop", "stream", "stream_options", "structured_outputs", "logprobs",
    "top_logprobs", "messages", "prompt", "echo", "suffix", "metadata", "user", "max_completion_tokens",
)  # fmt: skip
# Nearly valid values reach more code than values of another type.
NEAR = {
    "preference": st.sampled_from(["Bold", "Blod", {"Bold": 1e-320}, [1, 0.5], {"axis": "Risk", "first": 1}, [0.3, 1]]),
    "model": st.sampled_from(["policy", "base", "early", "nobody", "policy@0123456789ab"]),
    "options": st.lists(TEXTS, min_size=1, max_size=11),
    "answers": st.lists(TEXTS, min_size=1, max_size=9),
    "preferences": st.lists(st.sampled_from([None, "Bold", {"Bold": 1, "Careful": 2}, [1, 0]]), max_size=17),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "logprobs": st.sampled_from([True, False, 0, 5]),
    "stream": st.booleans(),
    "stop": st.lists(TEXTS, max_size=5),
    "prompt": TEXTS | st.lists(st.sampled_from([0, 1, 2, 599, 600, 2**31 - 1, -1]), max_size=3),
    "messages": st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": TEXTS}), max_size=3
    ),
    "structured_outputs": st.builds(lambda c: {"choice": c}, st.lists(TEXTS, max_size=3)),
}
RAW = (
    b"", b"null", b"[]", b'""', b"{", b"\xff\xfe{}", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"[" * 100_000,
    b'{"a":' * 50_000, b"[" * 900 + b"]" * 900, b"1" * 5000, b"NaN", b"1e999", b'{"scenario": "\\ud800"}', b"\0",
    b'{"scenario":"a","scenario":"b","options":["a","b"]}',
    b'{"scenario":"x","options":["a","b"],"preference":' + b"[" * 950 + b"]" * 950 + b"}",
    b'{"scenario":"x","options":["a","b"],"' + b"k" * 100_000 + b'":1}',
    b'{"scenario":"x","options":["a","b"],"model":' + b"9" * 5000 + b"}",
)  # fmt: skip


def bodies(usual: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Return bodies of a route: the usual one with some fields changed, added or removed."""
    changed = st.fixed_dictionaries({}, optional={key: NEAR.get(key, VALUES) | VALUES for key in KEYS})
    removed = st.sets(st.sampled_from(sorted(usual)), max_size=1)

    def body(values: dict[str, Any], kept: list[str], absent: set[str]) -> bytes:
        changes = {key: value for key, value in values.items() if key in kept}
        return json.dumps({k: v for k, v in (usual | changes).items() if k not in absent}).encode()

    few = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)
    near = st.lists(st.sampled_from(sorted(usual)), min_size=1, max_size=2)
    return st.builds(body, changed, few | near, removed) | VALUES.map(lambda value: json.dumps(value).encode())


def assert_refused_or_answered(response: httpx.Response, body: bytes) -> None:
    assert response.status_code < 500, (response.status_code, body[:500], response.text[:300])
    if response.status_code >= 400:
        assert response.json()["error"]["message"], body[:500]


def send_bodies(served: RunningServer, route: str, count: int, *, derandomize: bool = True) -> None:
    @examples(count, derandomize=derandomize)
    @given(body=bodies(ROUTES[route]))
    def run(body: bytes) -> None:
        assert_refused_or_answered(served.post(route, body), body)

    run()
    assert served.answers_as_usual()


@pytest.mark.parametrize("route", ROUTES)
def test_the_usual_body_is_answered(served: RunningServer, route: str) -> None:
    assert served.client.post(route, json=ROUTES[route]).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_malformed_bodies_are_refused(served: RunningServer, route: str) -> None:
    for body in RAW:
        assert_refused_or_answered(served.post(route, body), body)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=\xff", ""):
        response = served.client.post(route, content=b'{"a": 1}', headers={"Content-Type": kind.encode("latin-1")})
        assert_refused_or_answered(response, kind.encode("latin-1"))
    assert served.answers_as_usual()


@pytest.mark.parametrize("route", ROUTES)
def test_no_body_causes_a_server_error(served: RunningServer, route: str) -> None:
    send_bodies(served, route, 150)


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_none_of_very_many_bodies_causes_a_server_error(served: RunningServer, route: str) -> None:
    send_bodies(served, route, 2_000, derandomize=False)


PROMPTS = [
    ("/v1/completions", {"prompt": "", "max_tokens": 2}),
    ("/v1/completions", {"prompt": "The", "max_tokens": 2, "temperature": 5e-324}),
    ("/v1/completions", {"prompt": "The", "max_tokens": 2, "temperature": 1e-300, "top_p": 5e-324}),
    ("/v1/completions", {"prompt": [599], "max_tokens": 2, "logprobs": 5}),
    ("/v1/completions", {"prompt": "<eos>" * 9, "max_tokens": 2, "stop": ["", "\0"]}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "structured_outputs": {"choice": ["\0", "<eos>", "<eos>"]}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}], "max_tokens": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": []}], "n": 2, "seed": -(2**63)}),
    ("/v1/score", {"scenario": "\0", "answers": ["\0", "<eos>"], "preferences": ["Bold", [0.5, 0.5]]}),
    ("/v1/choose", {"scenario": "<eos>", "options": ["a", "a", "<eos>"], "preference": {"Bold": 5e-324}}),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body"), PROMPTS)
def test_odd_prompts_do_not_stop_the_engine(served: RunningServer, route: str, body: dict[str, Any]) -> None:
    assert_refused_or_answered(served.client.post(route, json=body), json.dumps(body).encode())
    assert served.answers_as_usual()


# --- the wire


def test_the_size_of_a_body_in_chunks_is_limited(served: RunningServer) -> None:
    def chunks(count: int) -> Iterator[bytes]:
        yield from [b" " * 100_000] * count

    for count, status in ((9, 400), (11, 413)):  # the limit is 1,000,000 bytes
        answer = served.client.post("/v1/choose", content=chunks(count), headers={"Content-Type": "application/json"})
        assert answer.status_code == status


def test_a_request_id_cannot_inject_a_header(served: RunningServer) -> None:
    assert served.client.get("/healthz", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    for odd in (b"a b", b"\xff", b"x" * 200):
        request_id = served.client.get("/healthz", headers={"x-request-id": odd}).headers["x-request-id"]
        assert len(request_id) == 32


def test_a_stream_passes_the_guard_part_by_part(served: RunningServer) -> None:
    body = {**ROUTES["/v1/completions"], "stream": True, "max_tokens": 8}
    with served.client.stream("POST", "/v1/completions", json=body) as response:
        parts = list(response.iter_raw())
    assert len(parts) > 2
    assert b"".join(parts).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("header", [b"Basic \xfc", b"Bearer \xff", b"Basic", b"\xff", b"Basic YTp\xe9"])
def test_a_malformed_key_is_a_wrong_key(served: RunningServer, header: bytes) -> None:
    answer = httpx.get(f"{served.url}/v1/models", headers={"Authorization": header}, timeout=TIMEOUT_S)
    assert answer.status_code == 401
