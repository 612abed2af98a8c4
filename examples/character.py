"""A script that gets a pydantic model from a language model, held to it by a JSON Schema.

python examples/character.py [MODEL]
"""

import sys
from typing import Annotated

from haversack import edge

try:
    from pydantic import BaseModel, Field
except ImportError:
    raise SystemExit("this example needs pydantic: pip install pydantic") from None


Name = Annotated[str, Field(max_length=30)]  # a bound, so that the reply ends within its tokens


class Character(BaseModel):
    """The hero of a story."""

    name: Name
    is_animal: bool
    friends: Annotated[list[Name], Field(max_length=3)]


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else edge.builtin_model()
    with edge.load(path, ram="1GiB", ctx=1024, seed=1) as model:
        generation = model.chat(
            [{"role": "user", "content": "Tell me a story about a fox."}],
            max_tokens=300,
            json_schema=Character.model_json_schema(),
        )
        print(Character.model_validate_json(generation.text))


if __name__ == "__main__":
    main()
