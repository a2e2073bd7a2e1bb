"""What one request asks and how it is answered: preferences, choices, scores, texts."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.serve.requests.asking import ControlTokenError, TooLongError
    from pipelines.serve.requests.bodies import (
        ChatBody,
        ChooseBody,
        Chosen,
        CompareBody,
        Compared,
        CompletionBody,
        ErrorBody,
        ScoreBody,
        Scored,
        StreamOptions,
    )
    from pipelines.serve.requests.examples import read_examples
    from pipelines.serve.requests.gateway import Gateway
    from pipelines.serve.requests.refused import why_refused
    from pipelines.serve.requests.text_stream import Written
    from pipelines.serve.requests.writing import Continuation, Piece
else:
    __getattr__ = lazy_exports(__name__)
