"""An async service: several questions are answered at the same time, each as it comes.

python examples/service.py [MODEL]
"""

import asyncio
import sys

from haversack import edge

QUESTIONS = ("Tell me about a fox.", "Tell me about a king.", "Tell me about the sea.")


async def answer(model: edge.Model, question: str) -> str:
    """Return the reply; whoever awaits it may cancel it."""
    generation = model.chat([{"role": "user", "content": question}], max_tokens=40)
    return "".join([piece async for piece in generation])


async def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else edge.builtin_model()
    options = edge.LoadOptions(sequences=len(QUESTIONS))
    async with await edge.aload(path, "1GiB", 1024, options=options) as model:
        answers = await asyncio.gather(*(answer(model, question) for question in QUESTIONS))
    for question, reply in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n{reply}\n")


if __name__ == "__main__":
    asyncio.run(main())
