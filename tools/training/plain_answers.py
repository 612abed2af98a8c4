"""Small questions with one plain answer, made of lists: manners for the last phase of training.

They were written for this project. The questions of the sample prompts are left out, because the
model must answer "What color is the sky?" and "What is the opposite of big?" without having seen
them.
"""

import random
from collections.abc import Iterator
from itertools import pairwise

Exchange = tuple[str, str]  # a question and its answer

COLORS = {
    "green": "grass,a frog,a leaf,a cucumber,spinach,a pea",
    "white": "snow,milk,a swan,salt,chalk,rice,a cloud",
    "yellow": "a lemon,a banana,the sun,butter,a canary,straw",
    "red": "blood,a strawberry,a tomato,a cherry,a fire engine,a ruby",
    "black": "coal,a raven,tar,the night,ink,soot",
    "brown": "chocolate,a bear,wood,earth,bread,a nut",
    "orange": "a carrot,a pumpkin,an orange,rust",
    "blue": "the sea,a sapphire,a bluebell,a blueberry",
    "gray": "an elephant,a mouse,ash,a donkey,stone",
    "pink": "a flamingo,a piglet,a tongue",
}
OPPOSITES = (
    "hot cold,small big,up down,day night,fast slow,old young,happy sad,wet dry,good bad,high low,"
    "long short,open closed,rich poor,strong weak,full empty,light dark,hard soft,near far,"
    "early late,loud quiet,clean dirty,thick thin,heavy light,left right,black white,in out,"
    "first last,easy difficult,brave afraid,wide narrow,deep shallow,sweet sour,sick healthy,"
    "new old,right wrong,true false,begin end,win lose,buy sell,give take,love hate,laugh cry,"
    "remember forget,find lose,push pull,come go,ask answer,wake sleep,rise fall,sharp blunt"
)
SOUNDS = (
    "dog woof,cat meow,cow moo,sheep baa,duck quack,pig oink,horse neigh,frog croak,"
    "rooster cock-a-doodle-doo,bee buzz,snake hiss,lion roar,mouse squeak,donkey hee-haw,crow caw"
)
YOUNG = (
    "dog puppy,cat kitten,cow calf,sheep lamb,horse foal,hen chick,duck duckling,goose gosling,"
    "pig piglet,bear cub,lion cub,fox cub,deer fawn,goat kid,swan cygnet,frog tadpole"
)
HOMES = {
    "bears": "in caves and forests",
    "birds": "in nests",
    "bees": "in hives",
    "foxes": "in dens",
    "fish": "in the water",
    "rabbits": "in burrows under the ground",
    "lions": "on the plains of Africa",
    "camels": "in the desert",
    "whales": "in the sea",
    "spiders": "in webs",
    "monkeys": "in trees",
    "kings": "in castles and palaces",
    "sailors": "on ships",
    "farmers": "on farms",
    "frogs": "in ponds",
    "polar bears": "on the ice in the north",
    "ants": "in nests under the ground",
    "squirrels": "in trees",
    "owls": "in hollow trees",
    "horses": "in stables",
}
FOODS = {
    "cows": "grass",
    "cats": "fish and mice",
    "dogs": "meat and bones",
    "rabbits": "grass and carrots",
    "birds": "seeds and insects",
    "horses": "hay and oats",
    "squirrels": "nuts",
    "bears": "berries, fish and honey",
    "mice": "grain and cheese",
    "frogs": "flies",
    "monkeys": "fruit",
    "owls": "mice",
    "wolves": "meat",
    "sheep": "grass",
    "bees": "the nectar of flowers",
    "lions": "meat",
    "hens": "corn",
    "goats": "grass and leaves",
}
MEANINGS = {
    "a baker": "somebody who makes bread and cakes",
    "a farmer": "somebody who grows food and keeps animals",
    "a doctor": "somebody who helps sick people",
    "a teacher": "somebody who helps children to learn",
    "a sailor": "somebody who works on a ship",
    "a miller": "somebody who makes flour from grain",
    "a tailor": "somebody who makes clothes",
    "a shepherd": "somebody who looks after sheep",
    "a king": "a man who rules a country",
    "a queen": "a woman who rules a country, or the wife of a king",
    "a prince": "the son of a king",
    "a princess": "the daughter of a king",
    "a witch": "a woman in stories who can do magic",
    "a giant": "a very large man in stories",
    "a fairy": "a small magic creature in stories",
    "a dragon": "a large creature in stories that breathes fire",
    "a castle": "a large and strong house of stone",
    "a forest": "a large place with many trees",
    "a river": "water that flows through the land to the sea",
    "a mountain": "a very high hill",
    "an island": "land with water all around it",
    "a desert": "a dry place with much sand",
    "a village": "a place with a few houses, smaller than a town",
    "a garden": "a place where flowers and vegetables grow",
    "a school": "a place where children learn",
    "a library": "a place where you can read and borrow books",
    "a kitchen": "the room where people cook",
    "a clock": "a thing that tells the time",
    "a key": "a thing that opens a lock",
    "a lamp": "a thing that gives light",
    "a boat": "a small ship",
    "a hammer": "a tool to drive in nails",
    "an umbrella": "a thing that keeps you dry in the rain",
    "a friend": "somebody who likes you and helps you",
    "a story": "something that is told about people or animals and what they did",
    "a fable": "a short story, often about animals, that teaches something",
    "a riddle": "a question that makes you think",
    "rain": "water that falls from the clouds",
    "snow": "frozen water that falls from the clouds in winter",
    "ice": "frozen water",
    "wind": "air that moves",
    "honey": "a sweet food that bees make",
    "cheese": "a food that is made of milk",
    "bread": "a food that is made of flour and water",
}
CAPITALS = (
    "England London,France Paris,Italy Rome,Spain Madrid,Germany Berlin,Greece Athens,Egypt Cairo,"
    "Russia Moscow,Japan Tokyo,China Beijing,Ireland Dublin,Portugal Lisbon,Norway Oslo,"
    "Sweden Stockholm,Denmark Copenhagen,Austria Vienna,Poland Warsaw,Hungary Budapest"
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December".split()
)
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
GREETINGS = ("hello", "hi", "good morning", "good day", "good evening", "hey", "hello there")
NAMES = "Tom Anna Peter Mary Jack Lucy Ben Rose Sam Kate Will Jane Max Ruth Paul Ella".split()
HEALTH = (
    "how are you",
    "how are you today",
    "how do you do",
    "are you well",
    "how do you feel",
    "how is it going",
)
WELL = (
    "I am very well, thank you. How are you?",
    "I am fine, thank you! And how are you?",
    "Very well, thank you. What can I do for you?",
)
WHO = (
    "who are you",
    "what are you",
    "tell me who you are",
    "tell me about yourself",
    "what is your name",
    "are you a person",
    "and who are you",
)
SELF = (
    "I am the small model that comes with haversack. I tell stories and talk a little.",
    "I am a small language model. I live in haversack, and I like to tell stories.",
)
ABLE = (
    "what can you do",
    "what are you able to do",
    "can you help me",
    "how can you help me",
    "what do you know",
    "what are you good at",
)
SKILLS = (
    "I can tell short stories and answer simple questions. I am small, so I make mistakes.",
    "I can tell you a story about animals, kings or children, and answer simple questions.",
)


def plain_answers(asked: random.Random) -> list[Exchange]:
    """Return every question in two wordings; `asked` draws the style of each."""
    found = [*_facts(), *_pairs(), *_sums(), *_order(), *_manners(asked), *_manners(asked)]
    return [(_styled(question, asked), answer) for question, answer in found]


def _facts() -> Iterator[Exchange]:
    for color, things in COLORS.items():
        for thing in things.split(","):
            answer = f"{thing[0].upper()}{thing[1:]} is {color}."
            yield f"What color is {thing}?", answer
            yield f"Which color has {thing}?", answer
    for animals, place in HOMES.items():
        yield f"Where do {animals} live?", f"{animals.capitalize()} live {place}."
        yield f"Tell me where {animals} live.", f"{animals.capitalize()} live {place}."
    for animals, food in FOODS.items():
        yield f"What do {animals} eat?", f"{animals.capitalize()} eat {food}."
        yield f"What do {animals} like to eat?", f"{animals.capitalize()} like to eat {food}."
    for thing, meaning in MEANINGS.items():
        answer = f"{thing[0].upper()}{thing[1:]} is {meaning}."
        yield f"What is {thing}?", answer
        yield f"Can you tell me what {thing} is?", answer


def _pairs() -> Iterator[Exchange]:
    for first, second in _split(OPPOSITES):
        yield f"What is the opposite of {first}?", f"The opposite of {first} is {second}."
        yield f"Tell me the opposite of {first}.", f"The opposite of {first} is {second}."
        if second != "big":
            yield f"What is the opposite of {second}?", f"The opposite of {second} is {first}."
    for animal, sound in _split(SOUNDS):
        yield f"What does a {animal} say?", f"A {animal} says {sound}."
        yield f"What sound does a {animal} make?", f"A {animal} says {sound}."
    for animal, young in _split(YOUNG):
        yield f"What is a baby {animal} called?", f"A baby {animal} is called a {young}."
        yield f"What do we call a young {animal}?", f"A young {animal} is called a {young}."
    for country, capital in _split(CAPITALS):
        yield f"What is the capital of {country}?", f"The capital of {country} is {capital}."
        yield f"Which city is the capital of {country}?", f"{capital} is the capital of {country}."


def _split(pairs: str) -> Iterator[tuple[str, str]]:
    for pair in pairs.split(","):
        first, _, second = pair.partition(" ")
        yield first, second


def _sums() -> Iterator[Exchange]:
    for a, first in enumerate(NUMBERS[1:7], 1):
        for b, second in enumerate(NUMBERS[1:7], 1):
            yield (
                f"What is {first} plus {second}?",
                f"{first.capitalize()} plus {second} is {NUMBERS[a + b]}.",
            )
            if a >= b:
                yield (
                    f"What is {first} minus {second}?",
                    f"{first.capitalize()} minus {second} is {NUMBERS[a - b]}.",
                )


def _order() -> Iterator[Exchange]:
    for names, kind in ((DAYS, "day"), (MONTHS, "month")):
        for before, after in zip(names, names[1:] + names[:1], strict=True):
            yield f"What {kind} comes after {before}?", f"{after} comes after {before}."
            yield f"What {kind} comes before {after}?", f"{before} comes before {after}."
    for number, after in pairwise(NUMBERS):
        yield f"What number comes after {number}?", f"{after.capitalize()} comes after {number}."


def _manners(asked: random.Random) -> Iterator[Exchange]:
    for greeting in GREETINGS:
        yield f"{greeting.capitalize()}!", f"{greeting.capitalize()}! How can I help you?"
        for question in asked.sample(HEALTH, 4):
            if (greeting, question) != ("hello", "how are you"):
                yield f"{greeting.capitalize()}, {question}?", asked.choice(WELL)
        name = asked.choice(NAMES)
        yield (
            f"{greeting.capitalize()}, my name is {name}.",
            f"{greeting.capitalize()}, {name}! It is nice to meet you.",
        )
    for question in HEALTH:
        yield f"{question.capitalize()}?", asked.choice(WELL)
    for question in WHO:
        yield f"{question.capitalize()}?", asked.choice(SELF)
        able = asked.choice(ABLE)
        if (question, able) != ("who are you", "what can you do"):
            yield f"{question.capitalize()}, and {able}?", f"{SELF[0]} {asked.choice(SKILLS)}"
    for question in ABLE:
        yield f"{question.capitalize()}?", asked.choice(SKILLS)


def _styled(question: str, asked: random.Random) -> str:
    """Return the question as somebody types it: now and then in small letters, or without its
    mark."""
    style = asked.random()
    if style < 0.2:
        return question.lower()
    return question.rstrip("?.") if style < 0.3 else question
