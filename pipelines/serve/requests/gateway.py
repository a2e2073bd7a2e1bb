"""The parts of a server that answer, put together; `compare` is made of the others."""

from pft_core.errors import UserError
from pipelines.serve.engines import Backend
from pipelines.serve.metrics import Metrics
from pipelines.serve.policies import Catalog, Policy
from pipelines.serve.requests.choices import ChoiceHandler
from pipelines.serve.requests.completions import CompletionHandler
from pipelines.serve.requests.policy_resolver import PolicyResolver
from pipelines.serve.requests.schemas import (
    ChatRequest,
    CompareRequest,
    CompareResponse,
    CompareSide,
    Message,
    Preference,
)
from pipelines.serve.serve_config import ServeConfig
from pipelines.serve.task_groups import together


class Gateway:
    """Answers the bodies of all routes. Raises UserError for what a client got wrong."""

    def __init__(self, config: ServeConfig, catalog: Catalog, backend: Backend, metrics: Metrics):
        self.limits, self.catalog, self._backend = config.limits, catalog, backend
        self._asker = PolicyResolver(config, catalog)
        self.chooser = ChoiceHandler(config, self._asker, backend, metrics)
        self.writer = CompletionHandler(config, self._asker, backend, metrics)

    async def ready(self) -> None:
        """Raise UnavailableError where no replica would answer."""
        await self._backend.check()

    async def policy(self, model: str | None) -> Policy:
        """Return the policy of a name. Raises UnknownModelError."""
        return await self._asker.policy(model)

    async def compare(self, body: CompareRequest) -> CompareResponse:
        """Ask both poles of an axis, and what lies between them at a weight, in one call."""
        space = (await self._asker.policy(body.model)).ref.space
        if not space.axes:
            raise UserError("this model knows no axis to compare the poles of: its operator may give examples=DIR")
        axis = space.axes[0] if body.axis is None else space.axis(body.axis)
        poles: list[tuple[str, float, Preference]] = [
            (pole.name, 1.0 - side, {"axis": axis.name, "pole": pole.name}) for side, pole in enumerate(axis.poles)
        ]
        if body.weight is not None:
            weights = {axis.first.name: body.weight, axis.second.name: 1 - body.weight}
            poles.append(("between", body.weight, {"axis": axis.name, **weights}))
        first, second, *between = await together(*(self._side(body, *pole) for pole in poles))
        assert first is not None
        assert second is not None
        return CompareResponse(axis=axis.name, first=first, second=second, between=between[0] if between else None)

    async def _side(self, body: CompareRequest, pole: str, weight: float, preference: Preference) -> CompareSide | None:
        """Ask under one preference; None for text between two poles that no adapter lies between."""
        asked = await self._asker.asked(body.model, preference)
        chosen, text = None, None
        if body.options is not None:
            chosen = await self.chooser.chosen(asked, body.scenario, body.options, ["one", "all"])
        elif len(asked.parts) > 1:
            return None
        else:
            message = Message(role="user", content=body.scenario)
            request = ChatRequest(messages=[message], max_tokens=body.max_tokens, temperature=0)
            written = self.writer.pieces(await self.writer.answer(request, asked), stream=False)
            text = "".join([piece.text async for piece in written])
        return CompareSide(pole=pole, weight=weight, chosen=chosen, text=text, **asked.told)
