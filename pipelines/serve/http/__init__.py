"""The HTTP side of the server: routes, API keys, limits, OpenAI's formats, and the page."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.serve.http.admission import Admission, num_bodies, num_places
    from pipelines.serve.http.keys import KeyRing, add_key
    from pipelines.serve.http.routes import make_app
else:
    __getattr__ = lazy_exports(__name__)
