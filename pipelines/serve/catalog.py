"""From the name in a request to a policy: which adapter, asked in which words.

Names come from the serving recipe, from one root folder, or are aliases of a registered model; anything else is
refused before a file is touched.
"""

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pft_core.artifacts import MODEL_REF_NAME, ModelRef
from pft_core.errors import UserError
from pft_core.prompts import Frame, chat_frame, template_digest
from pipelines.serve.adapters import (
    ADAPTER_FILES,
    ADAPTER_ID,
    REGISTRY_SCHEME,
    SHA,
    AdapterSource,
    Source,
    blend,
    content_digits,
    fetch,
    object_store,
    opened,
)
from pipelines.serve.config import ServeConfig

BASE, STEERED, SLIDER = "base", "steered", "slider"
MAX_LISTED = 1000


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


class Catalog:
    """The policies of one server, all on one base. Its methods read files: call them off the event loop."""

    def __init__(self, config: ServeConfig, tokenizer_of: Any):
        """Read every named policy once. tokenizer_of: model folder or hub name -> tokenizer.

        Raises UserError for a place without a policy, another base, or words that this code would not say.
        """
        self._config = config
        self._places = {config.name: config.policy, **config.adapters}
        self._aliases: dict[tuple[str, str], tuple[float, str]] = {}
        self._digits: dict[tuple[Any, ...], str] = {}
        self._known: dict[str, Policy] = {}
        self._lock = threading.Lock()
        self.default = self._at(config.name, config.policy)
        self.tokenizer = tokenizer_of(self.model)
        self._ends = (
            [self._at(SLIDER, place) for place in (config.ends.first, config.ends.second)] if config.ends else []
        )
        for policy in [self.default, *self._ends, *(self._at(*item) for item in config.adapters.items())]:
            refuse_other_words(policy, self.tokenizer)
            self._refuse_other_base(policy)
        if self._ends and len({policy.ref.template_digest for policy in self._ends}) > 1:
            raise UserError("ends: the two policies are asked in different words, so nothing lies between them")

    @property
    def model(self) -> str:
        """The folder or hub name that the engine loads."""
        return self.default.ref.weights or self.default.ref.base

    def resolve(self, name: str | None) -> Policy:
        """Return the policy of a name; None: the default. Raises UnknownModelError."""
        if not name or name == self._config.name:
            return self._at(self._config.name, self._config.policy)
        if name == BASE:
            return replace(self.default, id=BASE, source=None)
        if name == STEERED and self._config.steering is not None:
            return replace(self.default, id=STEERED, source=None, steered=True)
        found = ADAPTER_ID.fullmatch(name)
        if found is None:
            raise UnknownModelError(f"{name[:100]!r} is no name of a model: see /v1/models")
        return self._versioned(name, found["name"], found["version"])

    def between(self, first_weight: float) -> Policy | None:
        """Return the policy at this weight between the ends, rounded to the recipe's steps; None without ends."""
        if not self._config.ends:
            return None
        steps = self._config.ends.steps
        weight = round(first_weight * steps) / steps
        first, second = (self._at(SLIDER, place) for place in (self._config.ends.first, self._config.ends.second))
        if not (isinstance(first.source, Source) and isinstance(second.source, Source)):
            raise UserError("ends: both are LoRA adapters; a fully fine-tuned model has no adapter to interpolate")
        if first.ref.template_digest != second.ref.template_digest:
            raise UserError("ends: the two policies are asked in different words, so nothing lies between them")
        source = blend(first.source, second.source, weight, name=SLIDER)
        return replace(first, id=source.id, source=source)

    def listed(self) -> list[Policy]:
        """Return every policy that a request can name, the default first; those of the root folder too."""
        named = [self.resolve(None), replace(self.default, id=BASE, source=None)]
        named += [self._at(name, place) for name, place in self._config.adapters.items()]
        if self._config.steering is not None:
            named.append(self.resolve(STEERED))
        for name in self._names_in_root():
            try:
                named.append(self.resolve(name))
            except UserError:
                continue  # a folder that is no policy of this base
        return named

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
        if place is not None and alias is not None and place.startswith(REGISTRY_SCHEME):
            return f"{place.partition('@')[0]}@{alias}"
        if place is not None and alias is None:
            return place
        if place is None and alias is None and name in self._names_in_root():
            return f"{str(self._config.store.root).rstrip('/')}/{name}"
        raise UnknownModelError(f"{f'{name}@{alias}' if alias else name!r} is not served: see /v1/models")

    def _names_in_root(self) -> list[str]:
        root = self._config.store.root
        if root is None:
            return []
        if root.startswith("s3://"):
            from pyarrow.fs import FileSelector

            files, path = object_store(root)
            names = [info.base_name for info in files.get_file_info(FileSelector(path))]
        else:
            real = Path(root).resolve()
            # A link out of the root is not below it.
            names = [p.name for p in real.iterdir() if p.is_dir() and p.resolve().parent == real]
        return sorted(name for name in names if ADAPTER_ID.fullmatch(name) and "@" not in name)[:MAX_LISTED]

    def _at(self, name: str, place: str) -> Policy:
        """Read the policy at a place; what has been read is read again only where its files have changed."""
        place = self._pinned(place)
        with reference_at(place, registry=self._registry) as ref:
            if ref.adapter is None:
                return Policy(name, ref, None)
            digits = self._digits_at(ref.adapter)
        policy = Policy(f"{name}@{digits}", ref, Source(f"{name}@{digits}", ref.adapter))
        if name != self._config.name:
            self._refuse_other_base(policy)
        self._known[policy.id] = policy
        return policy

    def _pinned(self, place: str) -> str:
        """Return the place with an alias replaced by the version that it points to, for a few seconds."""
        if not place.startswith(REGISTRY_SCHEME) or "@" not in place:
            return place
        name, _, alias = place.removeprefix(REGISTRY_SCHEME).partition("@")
        with self._lock:
            read, version = self._aliases.get((name, alias), (float("-inf"), ""))
            if time.monotonic() - read > self._config.store.alias_ttl_s:
                version = version_of(name, alias, registry=self._registry)
                self._aliases[name, alias] = (time.monotonic(), version)
        return f"{REGISTRY_SCHEME}{name}/{version}"

    @property
    def _registry(self) -> str | None:
        return self._config.store.registry

    def _digits_at(self, place: str) -> str:
        stamp = _stamp(place)
        if stamp not in self._digits:
            with tempfile.TemporaryDirectory() as scratch:
                local = not place.startswith(("s3://", REGISTRY_SCHEME))
                folder = Path(place) if local else fetch(place, Path(scratch) / "adapter", registry=self._registry)
                self._digits[stamp] = content_digits(folder)
        return self._digits[stamp]

    def _refuse_other_base(self, policy: Policy) -> None:
        default = self.default.ref
        if policy.id.partition("@")[0] != self._config.name and (policy.ref.weights or default.weights):
            raise UserError(f"{policy.id}: a fully fine-tuned model is served alone: it shares no base with adapters")
        if policy.ref.base != default.base:
            raise UserError(f"{policy.id} is trained on {policy.ref.base!r}, this server runs {default.base!r}")


def _stamp(place: str) -> tuple[Any, ...]:
    """Return what changes when the files at a place do; a version of a registered model never does."""
    if place.startswith(REGISTRY_SCHEME):
        return (place,)
    if place.startswith("s3://"):
        files, path = object_store(place)
        infos = files.get_file_info([f"{path.rstrip('/')}/{name}" for name in ADAPTER_FILES])
        return (place, *((info.size, info.mtime_ns) for info in infos))
    try:
        stats = [(Path(place) / name).stat() for name in ADAPTER_FILES]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; an adapter is a folder written by `pft train`") from None
    return (place, *((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))


@contextmanager
def reference_at(place: str, *, registry: str | None) -> Iterator[ModelRef]:
    """Give the model reference at a place, its adapter as a place of its own. Raises UserError."""
    if place.startswith(REGISTRY_SCHEME):
        ref = replace(reference_in_registry(place, registry=registry), adapter=place)
    elif place.startswith("s3://"):
        ref = _reference_in_bucket(place.rstrip("/"))
    else:
        ref = ModelRef.load(Path(place).resolve())
    yield ref


def _reference_in_bucket(place: str) -> ModelRef:
    with tempfile.TemporaryDirectory() as scratch, opened(f"{place}/{MODEL_REF_NAME}") as file:
        copy = Path(scratch) / MODEL_REF_NAME
        copy.write_bytes(file.read())
        raw = json.loads(copy.read_text(encoding="utf-8"))
        return replace(ModelRef.load(copy), adapter=raw["adapter"] and f"{place}/{raw['adapter']}", weights=None)


def reference_in_registry(place: str, *, registry: str | None) -> ModelRef:
    """Read the reference of a registered version. Raises UserError where the registry does not have it."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as scratch:
        try:
            uri = f"{place}/{MODEL_REF_NAME}"
            return ModelRef.load(Path(download_artifacts(artifact_uri=uri, dst_path=scratch, tracking_uri=registry)))
        except (MlflowException, OSError) as error:
            raise UserError(f"{place}: cannot be read from the registry ({str(error).splitlines()[0]})") from None


def version_of(name: str, alias: str, *, registry: str | None) -> str:
    """Return the version that an alias of a registered model points to. Raises UnknownModelError."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return str(MlflowClient(tracking_uri=registry).get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        raise UnknownModelError(f"{name}@{alias}: not in the registry ({str(error).splitlines()[0]})") from None


def refuse_other_words(policy: Policy, tokenizer: Any) -> None:
    """Raise UserError where this code would ask a policy in other words than it was trained with."""
    ref = policy.ref
    now = template_digest(ref.style, ref.space)
    if now != ref.template_digest:
        raise UserError(
            f"{policy.id}: trained with the prompt template {ref.template_digest}, this server renders {now}: "
            "serve it with the version of pft that trained it, or train it again"
        )
    if ref.style.frame != Frame() and ref.style.frame != chat_frame(tokenizer):
        raise UserError(
            f"{policy.id}: trained inside another chat template than {tokenizer.name_or_path!r} has: "
            "put the tokenizer that it was trained with into the model's folder"
        )
