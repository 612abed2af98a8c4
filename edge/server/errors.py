"""What a request is refused with: a status, a code and one line."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from haversack.devices.errors import (
    BudgetError,
    CancelledError,
    ClosedError,
    ContextError,
    HaversackError,
    PromptError,
)


@dataclass
class ApiError(Exception):
    """A refusal with an HTTP `status`. `code` is the machine's word for it, as in OpenAI's API."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def kind(self) -> str:
        """The class of the error, by the names that OpenAI and Anthropic share."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        default = "invalid_request_error" if self.status < 500 else "api_error"
        return kinds.get(self.status, "overloaded_error" if self.status == 503 else default)


def bad_request(message: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, code, message)


def busy(message: str, retry_s: int) -> ApiError:
    """The refusal of a request that may be sent again after `retry_s` seconds."""
    return ApiError(503, "overloaded", message, {"Retry-After": str(retry_s)})


def ending() -> ApiError:
    """The refusal of a request that the server does not answer because it ends."""
    return busy("the server is ending: try again once it runs", retry_s=5)


def api_error(error: Exception) -> ApiError:
    """The refusal that an error of the engine becomes."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        return bad_request(str(error), "context_length_exceeded")
    if isinstance(error, PromptError):
        return bad_request(str(error))
    if isinstance(error, BudgetError | ClosedError | CancelledError):
        return busy(str(error), retry_s=5)
    known = isinstance(error, HaversackError)
    return ApiError(500, "engine_error", str(error) if known else "the server has a fault")


def openai_error(error: ApiError) -> dict[str, object]:
    told = {"message": error.message, "type": error.kind, "code": error.code, "param": None}
    return {"error": told}


def anthropic_error(error: ApiError) -> dict[str, object]:
    return {"type": "error", "error": {"type": error.kind, "message": error.message}}
