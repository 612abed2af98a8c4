"""Plain answers: many, sound, none of them a sample prompt's."""

import json
import random
from pathlib import Path

from haversack.tools.training import plain_answers as lists
from haversack.tools.training.plain_answers import plain_answers

SAMPLES = Path(lists.__file__).parent / "samples.json"
FOUND = plain_answers(random.Random(1))


def test_there_are_many_and_a_seed_repeats_them() -> None:
    assert len(set(FOUND)) > 600
    assert plain_answers(random.Random(1)) == FOUND != plain_answers(random.Random(2))


def test_no_sample_prompt_is_asked() -> None:
    prompts = {prompt.lower().rstrip("?.") for prompt in json.loads(SAMPLES.read_text())["prompts"]}
    for seed in range(20):
        asked = {
            question.lower().rstrip("?.") for question, _ in plain_answers(random.Random(seed))
        }
        assert not asked & prompts


def test_answers_are_sentences_that_are_right() -> None:
    answers = dict(FOUND)
    for answer in answers.values():
        assert answer[0].isupper() and answer.endswith((".", "!", "?"))
    told = {question.lower().rstrip("?."): answer for question, answer in FOUND}
    assert told["what color is a lemon"] == "A lemon is yellow."
    assert told["what is two plus three"] == "Two plus three is five."
    assert told["what is six minus two"] == "Six minus two is four."
    assert told["what day comes after sunday"] == "Monday comes after Sunday."
    assert told["what is the opposite of small"] == "The opposite of small is big."
    assert told["what is a baby dog called"] == "A baby dog is called a puppy."


def test_people_do_not_always_type_neatly() -> None:
    questions = [question for question, _ in FOUND]
    assert any(question.islower() for question in questions)
    assert any(not question.endswith(("?", ".", "!")) for question in questions)
