"""Settings of a chat."""

import pytest

from haversack.devices.errors import PromptError
from haversack.edge.chat_settings import ChatSettings
from haversack.edge.sampling import Sampling


def test_settings_change_by_the_names_of_their_options() -> None:
    settings = ChatSettings(Sampling())
    assert settings.changed("temp", "0.25").sampling.temperature == 0.25
    assert settings.changed("--top-k", "7").sampling.top_k == 7
    assert settings.changed("n", "12").max_tokens == 12
    assert settings.changed("n", "12").changed("max-tokens", "none").max_tokens is None
    assert settings.changed("n", "0").max_tokens == 0
    assert settings.changed("window", "on").window
    assert not settings.changed("markdown", "off").markdown
    assert "top_k 40" in str(settings) and "window off, markdown on" in str(settings)


def test_the_seed_shown_is_the_one_in_effect() -> None:
    settings = ChatSettings(Sampling(), chat_seed=5)
    assert "seed 5 (of the whole chat)," in str(settings)
    assert "seed 7," in str(settings.changed("seed", "7"))
    assert "seed 5 (" in str(settings.changed("seed", "7").changed("seed", "-1"))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("volume", "11", 'no setting is called "volume"'),
        ("temp", "hot", "temp is 'hot': give a number"),
        ("top-k", "1.5", "top-k is '1.5': give a whole number"),
        ("top-p", "7", "top_p is 7.0"),
        ("stop", "x", 'no setting is called "stop"'),
        ("volume", "11", "give one of .*, n, .*, max_tokens, "),
        ("n", "-1", "n is -1: give 0 or more, or none"),
        ("--max-tokens", "-20", "max-tokens is -20: give 0 or more, or none"),
        ("n", "few", "n is 'few': give a whole number"),
        ("window", "open", "window is 'open': give on or off"),
    ],
)
def test_a_wrong_setting_says_so(name: str, value: str, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        ChatSettings(Sampling()).changed(name, value)
