"""A script that gets a pydantic model from a language model, held to it by a JSON Schema.

python examples/character.py [MODEL]
"""

import sys

from haversack import edge

try:
    from pydantic import BaseModel
except ImportError:
    raise SystemExit("this example needs pydantic: pip install pydantic") from None


class Character(BaseModel):
    """Who a story is about."""

    name: str
    is_animal: bool
    friends: list[str]


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
