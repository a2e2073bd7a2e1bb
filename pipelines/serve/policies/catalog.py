"""From the name in a request to a policy: which adapter, asked in which words.

Names come from the serving recipe, from one root folder, or are aliases of a registered model; anything else is
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
    opened,
    reading,
    refuse_other_kinds,
    settings,
)
from pipelines.serve.policies.bare_base import bare_reference, is_bare
from pipelines.serve.serve_config import ServeConfig

log = logging.getLogger(__name__)

BASE, STEERED, SLIDER = RESERVED = "base", "steered", "slider"
MAX_LISTED = 1000
# What reading a folder that others write can end in, besides a UserError.
DAMAGE = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)


class UnknownModelError(UserError):
    """A request names a model that is not served."""


@dataclass(frozen=True)
class Policy:
    """What answers a request: the id that the answer tells, how it is asked (ref), and its adapter; None: the base.

    steered: asked without a condition, the direction of its axis being added instead (CAA).
    """

    id: str
    ref: ModelRef
    source: AdapterSource | None
    steered: bool = False


class TimedCache:
    """Answers from elsewhere, asked for again after some seconds.

    While one thread asks, the others take what was known; where nobody answers, it stays: an outage elsewhere is none
    of this server.
    """

    def __init__(self, ttl_s: float, clock: Callable[[], float] = time.monotonic):
        self._ttl_s, self._clock = ttl_s, clock
        self._known: dict[Any, tuple[float, Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, ask: Callable[[], Any]) -> Any:
        """Return what `ask` returns, or returned less than the seconds ago. Raises as `ask` does."""
        known = self._known.get(key)
        if known is not None and (self._is_fresh(known) or self._lock.locked()):
            return known[1]
        with self._lock:
            known = self._known.get(key)
            if known is None or not self._is_fresh(known):
                known = self._known[key] = (self._clock(), self._asked(key, ask))
            return known[1]

    def _asked(self, key: Any, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except UnreachableError as error:
            if key not in self._known:
                raise
            log.warning("%s: taken as it was", error)
            return self._known[key][1]
        except UserError:
            self._known.pop(key, None)
            raise

    def _is_fresh(self, known: tuple[float, Any]) -> bool:
        return self._clock() - known[0] <= self._ttl_s


class Catalog:
    """The policies of one server, all on one base. Its methods read files: call them off the event loop."""

    def __init__(self, config: ServeConfig, tokenizer_of: Any):
        """Read every named policy once. tokenizer_of: model folder or hub name -> tokenizer.

        Raises UserError for a place without a policy, another base, or words that this code would not say.
        """
        self._config, self._registry = config, config.store.registry
        self._places = {config.name: config.policy, **config.adapters}
        self._aliases = TimedCache(config.store.alias_ttl_s)
        self._stamps = TimedCache(config.store.alias_ttl_s)
        self._refs: dict[Any, ModelRef] = {}
        self._contents: dict[Any, AdapterContent] = {}
        self._known: dict[str, Policy] = {}
        # Its id gets digits once it is seen to fit.
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
        """The folder or hub name that the engine loads."""
        return self.default.ref.weights or self.default.ref.base

    def resolve(self, name: str | None) -> Policy:
        """Return the policy of a name; None: the default. Raises UnknownModelError, UserError for a damaged one."""
        if not name or name == self._config.name:
            return self._at(self._config.name, self._config.policy)
        if name in (BASE, STEERED):
            return self._untrained(name)
        found = ADAPTER_ID.fullmatch(name)
        if found is None:
            raise UnknownModelError(f"{name[:100]!r} is no name of a model: see /v1/models")
        return self._versioned(name, found["name"], found["version"])

    def forget(self) -> None:
        """Look every place up again: one of them held something else than was known of it."""
        self._known.clear()

    def between(self, first_weight: float) -> Policy:
        """Return the policy at this weight between the recipe's ends, to its steps."""
        assert self._config.ends
        weight = self._config.ends.nearest(first_weight)
        (first, first_source), (second, second_source) = self._ends()
        source = blend(first_source, second_source, weight, name=SLIDER)
        return replace(second if weight == 0 else first, id=source.id, source=source)

    def listed(self) -> list[Policy]:
        """Return every policy that a request can name, the default first.

        Those of the root folder have no digits: to list them must not read, or download, the weights of them all.
        """
        named = []
        for name in [None, *self._untrained_names(), *self._config.adapters]:
            with _left_out(name):
                named.append(self.resolve(name))
        with _left_out("store.root"):
            for name in self._names_in_root():
                with _left_out(name):
                    named.append(self._without_digits(name))
        return named

    def _ends(self) -> list[tuple[Policy, LocatedAdapter]]:
        """Return the slider's ends. Raises UserError where nothing lies between them."""
        assert self._config.ends
        ends = []
        for place in (self._config.ends.first, self._config.ends.second):
            policy = self._at(SLIDER, place)
            if not isinstance(policy.source, LocatedAdapter):
                raise UserError(f"ends: {place} has no LoRA adapter to interpolate: give a policy trained with LoRA")
            ends.append((policy, policy.source))
        if ends[0][0].ref.template_digest != ends[1][0].ref.template_digest:
            raise UserError("ends: the two policies are asked in different words, so nothing lies between them")
        return ends

    def _untrained(self, name: str) -> Policy:
        """Return the base, or the base steered, asked in the words of the default policy."""
        if name not in self._untrained_names():
            raise UnknownModelError(f"{name!r} is not served: see /v1/models")
        ref = replace(self.default.ref, trained_sides=())
        return Policy(name, ref, None, steered=name == STEERED)

    def _untrained_names(self) -> list[str]:
        """A fully fine-tuned model has no base beside it."""
        if self.default.ref.weights:
            return []
        return [BASE, STEERED] if self._config.steering else [BASE]

    def _versioned(self, asked: str, name: str, version: str | None) -> Policy:
        if version is not None and SHA.fullmatch(version):
            if asked in self._known:
                return self._known[asked]
            policy = self._at(name, self._place(name, None))
            if policy.id != asked:
                raise UnknownModelError(f"{asked!r} is not served: {name!r} is {policy.id!r} now")
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
        """Return the place of a name that matches ADAPTER_ID; None where the root has no such folder."""
        root = self._config.store.root
        if root is None or name in RESERVED:
            return None
        place = f"{root.rstrip('/')}/{name}"
        try:
            with reading(place):
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
        with reading(root):
            if root.startswith(BUCKET_SCHEME):
                from pyarrow.fs import FileSelector

                files, path = object_store(root)
                found = files.get_file_info(FileSelector(path))
                names = [info.base_name for info in found if not info.is_file]
            else:
                names = [path.name for path in Path(root).iterdir() if path.is_dir()]
        taken = {*self._places, *RESERVED}
        names = [name for name in names if ADAPTER_ID.fullmatch(name) and "@" not in name and name not in taken]
        return sorted(names)[:MAX_LISTED]

    def _without_digits(self, name: str) -> Policy:
        place = f"{str(self._config.store.root).rstrip('/')}/{name}"
        with readable(place):
            ref = self._reference(name, place)
        return Policy(name, ref, LocatedAdapter(name, ref.adapter) if ref.adapter else None)

    def _refuse_outside(self, name: str, folder: Path, files: Sequence[str]) -> None:
        """Raise UserError where a policy of the root has a file elsewhere: by a link, or by an adapter's path."""
        root = self._config.store.root
        if root is None or not is_local(root) or name in (*self._places, SLIDER):
            return
        inside = Path(root).resolve()
        for file in files:
            if not (folder / file).resolve().is_relative_to(inside):
                raise UserError(f"{name}: {file} is not in store.root: copy it there; links and paths may not leave it")

    # --- from a place to a policy

    def _at(self, name: str, place: str) -> Policy:
        """Read the policy at a place; what has been read is read again only where its files have changed."""
        place = self._pinned(place)
        with readable(place):
            ref = self._reference(name, place)
            if ref.adapter is None:
                return Policy(name, ref, None)
            content = self._content_at(name, ref.adapter)
        id = f"{name}@{content.digits}"
        refuse_other_adapter(ref, content.digests, name=name)
        measured = replace(ref, **content.digests)  # older references do not tell it
        policy = Policy(id, measured, LocatedAdapter(id, ref.adapter))
        self._known[id] = policy
        return policy

    def _pinned(self, place: str) -> str:
        """Return the place with an alias replaced by the version that it points to, for a few seconds."""
        if not place.startswith(REGISTRY_SCHEME) or "@" not in place:
            return place
        name, _, alias = place.removeprefix(REGISTRY_SCHEME).partition("@")
        version = self._aliases.get(place, lambda: version_of(name, alias, registry=self._registry))
        return f"{REGISTRY_SCHEME}{name}/{version}"

    def _reference(self, name: str, place: str) -> ModelRef:
        """Return the reference at a place, its adapter as a place of its own. Raises UserError for one that misfits."""
        if self._bare is not None and place == self._config.policy:
            return self._bare
        self._refuse_outside(name, Path(place), (MODEL_REF_NAME,))
        stamp = self._stamp(place, (MODEL_REF_NAME,))
        if stamp not in self._refs:
            ref = reference_at(place, registry=self._registry)
            refuse_other_words(name, ref, self.tokenizer)
            self._refs[stamp] = ref
        ref = self._refs[stamp]
        self._refuse_other_base(name, ref)
        self._refuse_outside(name, Path(ref.adapter or place), ADAPTER_FILES if ref.adapter else ())
        return ref

    def _content_at(self, name: str, place: str) -> AdapterContent:
        stamp = self._stamp(place, ADAPTER_FILES)
        if stamp not in self._contents:
            with tempfile.TemporaryDirectory() as scratch, reading(place):
                folder = Path(place) if is_local(place) else fetch(place, Path(scratch) / "a", registry=self._registry)
                refuse_other_kinds(name, folder)
                self._contents[stamp] = content_of(folder)
        return self._contents[stamp]

    def _stamp(self, place: str, names: tuple[str, ...]) -> Any:
        """Return what changes when these files at a place do; a version of a registered model never does."""
        if place.startswith(REGISTRY_SCHEME):
            return place
        if place.startswith(BUCKET_SCHEME):
            return place, self._stamps.get((place, names), lambda: etags(place, names))
        with reading(place):
            stats = [(Path(place) / name).stat() for name in names]
        return place, *((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)

    def _refuse_other_base(self, name: str, ref: ModelRef) -> None:
        default = self.default.ref
        is_own = name == self._config.name and ref.weights == default.weights
        if (ref.weights or default.weights) and not is_own:
            raise UserError(f"{name}: a fully fine-tuned model is served alone: it shares no base with adapters")
        if ref.base != default.base and digest_of_base(ref) != digest_of_base(default):
            raise UserError(f"{name} is trained on {ref.base!r}, this server runs {default.base!r}")


def digest_of_base(ref: ModelRef) -> str:
    """The digest of a reference's base, as it is written in it or from the files: one base may lie in two places."""
    return ref.base_digest or base_digest(ref.base)


@contextmanager
def _left_out(name: str | None) -> Iterator[None]:
    """Leave out of a list what cannot be read: one that is damaged must not hide the others."""
    try:
        yield
    except UserError as error:
        log.warning("%s is not listed: %s", name or "the default policy", error)


def is_local(place: str) -> bool:
    return not place.startswith((BUCKET_SCHEME, REGISTRY_SCHEME))


@contextmanager
def readable(place: str) -> Iterator[None]:
    """Raise UserError for what reading a damaged folder ends in."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{place}: not a policy ({type(error).__name__}: {error}): copy it again") from None


def reference_at(place: str, *, registry: str | None) -> ModelRef:
    """Read the model reference at a place, its adapter as a place of its own. Raises UserError."""
    with readable(place):
        ref = ModelRef.load(Path(place).resolve()) if is_local(place) else _remote_reference(place, registry)
        json.dumps(asdict(ref), ensure_ascii=False, allow_nan=False).encode()  # clients are told what it says
        if not ref.space.axes:
            raise ValueError("its space has no axis")
    return ref


def _remote_reference(place: str, registry: str | None) -> ModelRef:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / MODEL_REF_NAME
        if place.startswith(REGISTRY_SCHEME):
            download(place, MODEL_REF_NAME, Path(scratch), registry=registry)
        else:
            with opened(f"{place.rstrip('/')}/{MODEL_REF_NAME}") as file:
                copy.write_bytes(file.read())
        raw, ref = json.loads(copy.read_text(encoding="utf-8")), ModelRef.load(copy)
    if ref.weights is not None or ref.adapter is None:
        raise UserError(f"{place}: has no LoRA adapter: serve a fully fine-tuned model from a folder")
    if place.startswith(REGISTRY_SCHEME):
        return replace(ref, adapter=place)
    inside = PurePosixPath(raw["adapter"])
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"{place}: adapter={str(inside)!r} is not below it: copy the run folder as it is")
    return replace(ref, adapter=f"{place.rstrip('/')}/{inside}")


def version_of(name: str, alias: str, *, registry: str | None) -> str:
    """Return the version that an alias of a registered model points to. Raises UnknownModelError, UnreachableError."""
    try:
        with settings(f"{name}@{alias}", registry) as (client, _):
            return str(client.get_model_version_by_alias(name, alias).version)
    except UnreachableError:
        raise
    except UserError as error:
        raise UnknownModelError(str(error)) from None


def refuse_other_words(name: str, ref: ModelRef, tokenizer: Any) -> None:
    """Raise UserError where this code would ask a policy in other words than it was trained with."""
    try:
        now = template_digest(ref.style, ref.space)
    except DAMAGE as error:
        raise UserError(f"{name}: its style or space is damaged ({error}): copy the policy again") from None
    if now != ref.template_digest:
        raise UserError(
            f"{name}: trained with the prompt template {ref.template_digest}, this server renders {now}: "
            "serve it with the version of pft that trained it, or train it again"
        )
    if ref.style.frame != Frame() and not is_frame_of(ref.style.frame, tokenizer):
        raise UserError(
            f"{name}: trained inside another chat template than {tokenizer.name_or_path!r} has: "
            "put the tokenizer that it was trained with into the model's folder"
        )
