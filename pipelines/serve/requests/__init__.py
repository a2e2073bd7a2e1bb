"""The handling of one request: its body, its preference, and its answer by choices, scores or text."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.serve.requests.completions import Continuation, TextChunk
    from pipelines.serve.requests.gateway import Gateway
    from pipelines.serve.requests.page_examples import read_examples
    from pipelines.serve.requests.policy_resolver import ControlTokenError, TooLongError
    from pipelines.serve.requests.refused_fields import refusal_reason
    from pipelines.serve.requests.schemas import (
        ChatRequest,
        ChooseRequest,
        ChooseResponse,
        CompareRequest,
        CompareResponse,
        CompareSide,
        CompletionRequest,
        ErrorResponse,
        ExamplesResponse,
        HealthResponse,
        ModelCard,
        ModelList,
        PolicyCard,
        ScoreRequest,
        ScoreResponse,
        StreamOptions,
        VersionResponse,
    )
    from pipelines.serve.requests.text_stream import TextToken
else:
    __getattr__ = lazy_exports(__name__)
