"""The gateway: the handlers of all routes, and `compare`, which combines them."""

from pft_core.errors import UserError
from pipelines.serve.engines import Backend
from pipelines.serve.metrics import Metrics
from pipelines.serve.policies import Catalog, Policy
from pipelines.serve.requests.choice_handler import ChoiceHandler
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
from pipelines.serve.task_groups import gather_or_cancel


class Gateway:
    """Answers the requests of all routes. Methods raise UserError if a request is invalid."""

    def __init__(self, config: ServeConfig, catalog: Catalog, backend: Backend, metrics: Metrics):
        self.limits, self.catalog, self._backend = config.limits, catalog, backend
        self._resolver = PolicyResolver(config, catalog)
        self.chooser = ChoiceHandler(config, self._resolver, backend, metrics)
        self.writer = CompletionHandler(config, self._resolver, backend, metrics)

    async def ready(self) -> None:
        """Raise UnavailableError if no replica can answer."""
        await self._backend.check()

    async def policy(self, model: str | None) -> Policy:
        """Return the policy of a name. Raises UnknownModelError if it is not served."""
        return await self._resolver.policy(model)

    async def compare(self, body: CompareRequest) -> CompareResponse:
        """Answer under both poles of an axis, and at a weight between them if the request has one."""
        space = (await self._resolver.policy(body.model)).ref.space
        if not space.axes:
            raise UserError(
                "this model has no axis whose poles could be compared: the server's operator can set examples=DIR, "
                "whose axes it then takes"
            )
        axis = space.axes[0] if body.axis is None else space.axis(body.axis)
        poles: list[tuple[str, float, Preference]] = [
            (pole.name, 1.0 - side, {"axis": axis.name, "pole": pole.name}) for side, pole in enumerate(axis.poles)
        ]
        if body.weight is not None:
            weights = {axis.first.name: body.weight, axis.second.name: 1 - body.weight}
            poles.append(("between", body.weight, {"axis": axis.name, **weights}))
        first, second, *between = await gather_or_cancel(*(self._side(body, *pole) for pole in poles))
        assert first is not None
        assert second is not None
        return CompareResponse(axis=axis.name, first=first, second=second, between=between[0] if between else None)

    async def _side(self, body: CompareRequest, pole: str, weight: float, preference: Preference) -> CompareSide | None:
        """Answer under one preference; None for free text at a weight between poles that needs mixed probabilities."""
        resolved = await self._resolver.resolve(body.model, preference)
        choice, text = None, None
        if body.options is not None:
            choice = await self.chooser.choose_resolved(resolved, body.scenario, body.options, ["one", "all"])
        elif len(resolved.parts) > 1:
            return None
        else:
            message = Message(role="user", content=body.scenario)
            request = ChatRequest(messages=[message], max_tokens=body.max_tokens, temperature=0)
            chunks = self.writer.chunks(await self.writer.chat_resolved(request, resolved), stream=False)
            text = "".join([chunk.text async for chunk in chunks])
        return CompareSide(pole=pole, weight=weight, chosen=choice, text=text, **resolved.response_fields)
