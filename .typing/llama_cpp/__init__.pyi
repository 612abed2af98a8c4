# Both type checkers see the binding as Any: by its own annotations every handle may be None, and
# no function takes None, not even where llama.h says that it may be NULL.
from typing import Any

def __getattr__(name: str) -> Any: ...
