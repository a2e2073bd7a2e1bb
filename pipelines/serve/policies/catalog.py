"""The catalog resolves the name in a request to a policy: an adapter and a prompt style.

Names come from the serving recipe or from one root folder, or are aliases of a registered model. Any other name is
refused before a file is touched.
"""

import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pft_core.errors import UserError
from pft_core.policies import MODEL_REF_NAME, ModelRef, base_digest, refuse_other_adapter
from pft_core.prompts import Frame, is_frame_of, template_digest
from pipelines.serve.policies.adapters import (
    ADAPTER_FILES,
    ADAPTER_ID,
    BUCKET_SCHEME,
    REGISTRY_SCHEME,
    SHA,
    AdapterContent,
    AdapterSource,
    LocatedAdapter,
    MissingError,
    UnreachableError,
    blend,
    content_of,
    download,
    etags,
    fetch,
    object_store,
    open_file,
    read_errors,
    refuse_other_kinds,
    registry_client,
)
from pipelines.serve.policies.bare_base import bare_reference, is_bare
from pipelines.serve.serve_config import ServeConfig

log = logging.getLogger(__name__)

BASE, STEERED, SLIDER = RESERVED = "base", "steered", "slider"
MAX_LISTED = 1000
# The exceptions, besides UserError, that reading a folder written by others can raise.
DAMAGE = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)


class UnknownModelError(UserError):
    """A request names a model that is not served."""


@dataclass(frozen=True)
class Policy:
    """A served policy. id: as responses state it; ref: its model reference; source: its adapter, None for the base.

    is_steered: the prompt states no condition; the axis's steering vector is added instead (CAA).
    """

    id: str
    ref: ModelRef
    source: AdapterSource | None
    is_steered: bool = False


class TimedCache:
    """Values from a remote service, fetched again after some seconds.

    While one thread fetches, the others use the old value. If the service is unreachable, the old value stays in use,
    so that an outage elsewhere does not become one here.
    """

    def __init__(self, ttl_s: float, clock: Callable[[], float] = time.monotonic):
        self._ttl_s, self._clock = ttl_s, clock
        self._entries: dict[Any, tuple[float, Any]] = {}  # key -> time of fetching, value
        self._lock = threading.Lock()

    def get(self, key: Any, fetch_value: Callable[[], Any]) -> Any:
        """Return the value of `fetch_value`, or one fetched less than `ttl_s` ago. Raises as `fetch_value` does."""
        entry = self._entries.get(key)
        if entry is not None and (self._is_fresh(entry) or self._lock.locked()):
            return entry[1]
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not self._is_fresh(entry):
                entry = self._entries[key] = (self._clock(), self._fetch(key, fetch_value))
            return entry[1]

    def _fetch(self, key: Any, fetch_value: Callable[[], Any]) -> Any:
        try:
            return fetch_value()
        except UnreachableError as error:
            if key not in self._entries:
                raise
            log.warning("%s: the last known value stays in use", error)
            return self._entries[key][1]
        except UserError:
            self._entries.pop(key, None)
            raise

    def _is_fresh(self, entry: tuple[float, Any]) -> bool:
        return self._clock() - entry[0] <= self._ttl_s


class Catalog:
    """The policies of one server, all on one base. Its methods read files: call them off the event loop."""

    def __init__(self, config: ServeConfig, tokenizer_of: Any):
        """Read every named policy once. tokenizer_of: a function from a model folder or hub name to its tokenizer.

        Raises UserError if a place has no policy, a policy is on another base, or this code would render its prompts
        differently.
        """
        self._config, self._registry = config, config.store.registry
        self._places = {config.name: config.policy, **config.adapters}
        self._aliases = TimedCache(config.store.alias_ttl_s)
        self._stamps = TimedCache(config.store.alias_ttl_s)
        self._refs: dict[Any, ModelRef] = {}
        self._contents: dict[Any, AdapterContent] = {}
        self._known: dict[str, Policy] = {}
        # Preliminary: the id gets its digits below, once the policy is read and checked.
        self._bare = bare_reference(config.policy, examples=config.examples) if is_bare(config.policy) else None
        first = self._bare or reference_at(self._pinned(config.policy), registry=self._registry)
        self.default = Policy(config.name, first, None)
        self.tokenizer = tokenizer_of(self.model)
        self.default = self._at(config.name, config.policy)
        for name, place in config.adapters.items():
            self._at(name, place)
        if config.ends:
            self._ends()
        self._names_in_root()

    @property
    def model(self) -> str:
        """The folder or hub name of the model that the engine loads."""
        return self.default.ref.weights or self.default.ref.base

    def resolve(self, name: str | None) -> Policy:
        """Return the policy of a name; None: the default.

        Raises UnknownModelError if the name is not served, UserError if the policy is damaged.
        """
        if not name or name == self._config.name:
            return self._at(self._config.name, self._config.policy)
        if name in (BASE, STEERED):
            return self._untrained(name)
        match = ADAPTER_ID.fullmatch(name)
        if match is None:
            raise UnknownModelError(f"{name[:100]!r} is not a valid model name: see /v1/models")
        return self._versioned(name, match["name"], match["version"])

    def forget(self) -> None:
        """Forget all policies, so that their places are read again: the content of one has changed."""
        self._known.clear()

    def between(self, first_weight: float) -> Policy:
        """Return the policy at this weight between the recipe's ends, rounded to `ends.steps`."""
        assert self._config.ends
        weight = self._config.ends.nearest(first_weight)
        (first, first_source), (second, second_source) = self._ends()
        source = blend(first_source, second_source, weight, name=SLIDER)
        return replace(second if weight == 0 else first, id=source.id, source=source)

    def listed(self) -> list[Policy]:
        """Return every policy that a request can name, the default first.

        Policies of the root folder are listed without digits, because computing those would read, or download, all
        their weights.
        """
        policies = []
        for name in [None, *self._untrained_names(), *self._config.adapters]:
            with _skip_damaged(name):
                policies.append(self.resolve(name))
        with _skip_damaged("store.root"):
            for name in self._names_in_root():
                with _skip_damaged(name):
                    policies.append(self._without_digits(name))
        return policies

    def _ends(self) -> list[tuple[Policy, LocatedAdapter]]:
        """Return the slider's ends. Raises UserError if they cannot be interpolated."""
        assert self._config.ends
        ends = []
        for place in (self._config.ends.first, self._config.ends.second):
            policy = self._at(SLIDER, place)
            if not isinstance(policy.source, LocatedAdapter):
                raise UserError(f"ends: {place} has no LoRA adapter to interpolate: use a policy trained with LoRA")
            ends.append((policy, policy.source))
        if ends[0][0].ref.template_digest != ends[1][0].ref.template_digest:
            raise UserError("ends: the two policies have different prompt templates, so they cannot be interpolated")
        return ends

    def _untrained(self, name: str) -> Policy:
        """Return the base, plain or steered, with the prompt style of the default policy."""
        if name not in self._untrained_names():
            raise UnknownModelError(f"{name!r} is not served: see /v1/models")
        ref = replace(self.default.ref, trained_sides=())
        return Policy(name, ref, None, is_steered=name == STEERED)

    def _untrained_names(self) -> list[str]:
        """Return the names of the untrained policies: none beside a fully fine-tuned model, which has no base."""
        if self.default.ref.weights:
            return []
        return [BASE, STEERED] if self._config.steering else [BASE]

    def _versioned(self, id: str, name: str, version: str | None) -> Policy:
        if version is not None and SHA.fullmatch(version):
            if id in self._known:
                return self._known[id]
            policy = self._at(name, self._place(name, None))
            if policy.id != id:
                raise UnknownModelError(f"{id!r} is not served: {name!r} is now {policy.id!r}")
            return policy
        return self._at(name, self._place(name, version))

    def _place(self, name: str, alias: str | None) -> str:
        place = self._places.get(name)
        if place is not None and alias is not None and place.startswith(REGISTRY_SCHEME) and "@" in place:
            return f"{place.partition('@')[0]}@{alias}"
        if alias is None:
            place = place or self._place_in_root(name)
            if place is not None:
                return place
        raise UnknownModelError(f"{f'{name}@{alias}' if alias else name!r} is not served: see /v1/models")

    # --- the root folder

    def _place_in_root(self, name: str) -> str | None:
        """Return the place of a name that matches ADAPTER_ID; None if the root has no such folder."""
        root = self._config.store.root
        if root is None or name in RESERVED:
            return None
        place = f"{root.rstrip('/')}/{name}"
        try:
            with read_errors(place):
                if not is_local(root):
                    self._stamp(place, (MODEL_REF_NAME,))
                elif not Path(place).is_dir():
                    return None
        except MissingError:
            return None
        return place

    def _names_in_root(self) -> list[str]:
        root = self._config.store.root
        if root is None:
            return []
        with read_errors(root):
            if root.startswith(BUCKET_SCHEME):
                from pyarrow.fs import FileSelector

                files, path = object_store(root)
                infos = files.get_file_info(FileSelector(path))
                names = [info.base_name for info in infos if not info.is_file]
            else:
                names = [path.name for path in Path(root).iterdir() if path.is_dir()]
        taken = {*self._places, *RESERVED}
        names = [name for name in names if ADAPTER_ID.fullmatch(name) and "@" not in name and name not in taken]
        return sorted(names)[:MAX_LISTED]

    def _without_digits(self, name: str) -> Policy:
        place = f"{str(self._config.store.root).rstrip('/')}/{name}"
        with damage_errors(place):
            ref = self._reference(name, place)
        return Policy(name, ref, LocatedAdapter(name, ref.adapter) if ref.adapter else None)

    def _refuse_outside(self, name: str, folder: Path, files: Sequence[str]) -> None:
        """Raise UserError if a policy of the root has a file outside of it, by a link or by an adapter's path."""
        root = self._config.store.root
        if root is None or not is_local(root) or name in (*self._places, SLIDER):
            return
        inside = Path(root).resolve()
        for file in files:
            if not (folder / file).resolve().is_relative_to(inside):
                raise UserError(
                    f"{name}: {file} is outside store.root: copy it there, as links and paths must not leave the root"
                )

    # --- from a place to a policy

    def _at(self, name: str, place: str) -> Policy:
        """Return the policy at a place; its files are read again only if they have changed."""
        place = self._pinned(place)
        with damage_errors(place):
            ref = self._reference(name, place)
            if ref.adapter is None:
                return Policy(name, ref, None)
            content = self._content_at(name, ref.adapter)
        id = f"{name}@{content.digits}"
        refuse_other_adapter(ref, content.digests, name=name)
        with_digests = replace(ref, **content.digests)  # older references lack them
        policy = Policy(id, with_digests, LocatedAdapter(id, ref.adapter))
        self._known[id] = policy
        return policy

    def _pinned(self, place: str) -> str:
        """Return the place with an alias replaced by its version, which is cached for a few seconds."""
        if not place.startswith(REGISTRY_SCHEME) or "@" not in place:
            return place
        name, _, alias = place.removeprefix(REGISTRY_SCHEME).partition("@")
        version = self._aliases.get(place, lambda: version_of(name, alias, registry=self._registry))
        return f"{REGISTRY_SCHEME}{name}/{version}"

    def _reference(self, name: str, place: str) -> ModelRef:
        """Return the reference at a place, its adapter as a place of its own. Raises UserError if it does not fit."""
        if self._bare is not None and place == self._config.policy:
            return self._bare
        self._refuse_outside(name, Path(place), (MODEL_REF_NAME,))
        stamp = self._stamp(place, (MODEL_REF_NAME,))
        if stamp not in self._refs:
            ref = reference_at(place, registry=self._registry)
            refuse_other_prompts(name, ref, self.tokenizer)
            self._refs[stamp] = ref
        ref = self._refs[stamp]
        self._refuse_other_base(name, ref)
        self._refuse_outside(name, Path(ref.adapter or place), ADAPTER_FILES if ref.adapter else ())
        return ref

    def _content_at(self, name: str, place: str) -> AdapterContent:
        stamp = self._stamp(place, ADAPTER_FILES)
        if stamp not in self._contents:
            with tempfile.TemporaryDirectory() as scratch, read_errors(place):
                folder = Path(place) if is_local(place) else fetch(place, Path(scratch) / "a", registry=self._registry)
                refuse_other_kinds(name, folder)
                self._contents[stamp] = content_of(folder)
        return self._contents[stamp]

    def _stamp(self, place: str, names: tuple[str, ...]) -> Any:
        """Return a value that changes if these files do; a version of a registered model never changes."""
        if place.startswith(REGISTRY_SCHEME):
            return place
        if place.startswith(BUCKET_SCHEME):
            return place, self._stamps.get((place, names), lambda: etags(place, names))
        with read_errors(place):
            stats = [(Path(place) / name).stat() for name in names]
        return place, *((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)

    def _refuse_other_base(self, name: str, ref: ModelRef) -> None:
        default = self.default.ref
        is_own = name == self._config.name and ref.weights == default.weights
        if (ref.weights or default.weights) and not is_own:
            raise UserError(
                f"{name}: a fully fine-tuned model shares no base with adapters: serve it with a server of its own"
            )
        if ref.base != default.base and digest_of_base(ref) != digest_of_base(default):
            raise UserError(
                f"{name} is trained on {ref.base!r}, but this server runs {default.base!r}: serve policies on one base"
            )


def digest_of_base(ref: ModelRef) -> str:
    """Return the digest of a reference's base, from the reference or the files; one base may be in two places."""
    return ref.base_digest or base_digest(ref.base)


@contextmanager
def _skip_damaged(name: str | None) -> Iterator[None]:
    """Log a UserError and continue, so that one damaged policy does not hide the others from the list."""
    try:
        yield
    except UserError as error:
        log.warning("%s is not listed: %s", name or "the default policy", error)


def is_local(place: str) -> bool:
    return not place.startswith((BUCKET_SCHEME, REGISTRY_SCHEME))


@contextmanager
def damage_errors(place: str) -> Iterator[None]:
    """Turn the exceptions of reading a damaged folder into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{place}: not a policy ({type(error).__name__}: {error}): copy it again") from None


def reference_at(place: str, *, registry: str | None) -> ModelRef:
    """Read the model reference at a place, its adapter as a place of its own. Raises UserError if it is damaged."""
    with damage_errors(place):
        ref = ModelRef.load(Path(place).resolve()) if is_local(place) else _remote_reference(place, registry)
        json.dumps(asdict(ref), ensure_ascii=False, allow_nan=False).encode()  # raises if it cannot be sent to clients
        if not ref.space.axes:
            raise ValueError("its space has no axis")
    return ref


def _remote_reference(place: str, registry: str | None) -> ModelRef:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / MODEL_REF_NAME
        if place.startswith(REGISTRY_SCHEME):
            download(place, MODEL_REF_NAME, Path(scratch), registry=registry)
        else:
            with open_file(f"{place.rstrip('/')}/{MODEL_REF_NAME}") as file:
                copy.write_bytes(file.read())
        raw, ref = json.loads(copy.read_text(encoding="utf-8")), ModelRef.load(copy)
    if ref.weights is not None or ref.adapter is None:
        raise UserError(f"{place} has no LoRA adapter: serve a fully fine-tuned model from a local folder")
    if place.startswith(REGISTRY_SCHEME):
        return replace(ref, adapter=place)
    inside = PurePosixPath(raw["adapter"])
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"{place}: adapter={str(inside)!r} is outside of it: copy the run folder unchanged")
    return replace(ref, adapter=f"{place.rstrip('/')}/{inside}")


def version_of(name: str, alias: str, *, registry: str | None) -> str:
    """Return the version that an alias of a registered model points to.

    Raises UnknownModelError if there is none, UnreachableError if the registry does not answer.
    """
    try:
        with registry_client(f"{name}@{alias}", registry) as (client, _):
            return str(client.get_model_version_by_alias(name, alias).version)
    except UnreachableError:
        raise
    except UserError as error:
        raise UnknownModelError(str(error)) from None


def refuse_other_prompts(name: str, ref: ModelRef, tokenizer: Any) -> None:
    """Raise UserError if this code would render a policy's prompts differently from its training."""
    try:
        now = template_digest(ref.style, ref.space)
    except DAMAGE as error:
        raise UserError(f"{name}: its style or space is damaged ({error}): copy the policy again") from None
    if now != ref.template_digest:
        raise UserError(
            f"{name}: trained with the prompt template {ref.template_digest}, but this server renders {now}: "
            "serve it with the pft version that trained it, or train it again"
        )
    if ref.style.frame != Frame() and not is_frame_of(ref.style.frame, tokenizer):
        raise UserError(
            f"{name}: trained with a chat template that differs from the one of {tokenizer.name_or_path!r}: "
            "put the tokenizer from its training into the model's folder"
        )
