"""What decoding takes: counts of the passes that compute no prompt, apart from those that do."""

from dataclasses import dataclass, fields

from haversack.offload.engine import Engine

_WARM_TOKENS = 16  # of a run that the slots take to fill with what its text uses
_LEAST_BATCH_TOKENS = 32  # of a prompt; smaller ones compute a token more slowly


@dataclass(frozen=True)
class Decoding:
    """Tokens, the time of their passes and how much of it was waiting for reads, uses of experts
    that found them in a slot or not, and the bytes read."""

    tokens: int = 0
    pass_s: float = 0.0
    wait_s: float = 0.0
    hits: int = 0
    misses: int = 0
    bytes_read: int = 0

    def __add__(self, other: "Decoding") -> "Decoding":
        return Decoding(*(getattr(self, each.name) + getattr(other, each.name) for each in _FIELDS))

    def __sub__(self, other: "Decoding") -> "Decoding":
        return Decoding(*(getattr(self, each.name) - getattr(other, each.name) for each in _FIELDS))


_FIELDS = fields(Decoding)


class DecodeMeter:
    """Counts what an engine's passes take, told of each at its end. `total` is of all that decode,
    `steady` of those after the first tokens, `prompts` of all larger batches of prompts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.total = self._warming = self.prompts = Decoding()
        self._before = self._counts()

    @property
    def steady(self) -> Decoding:
        return self.total - self._warming

    def count_prompt(self, num_tokens: int, pass_s: float) -> None:
        """Count a pass that computed a batch of a prompt."""
        now = self._counts()
        spent, self._before = now - self._before, now
        if num_tokens >= _LEAST_BATCH_TOKENS:
            self.prompts += spent + Decoding(num_tokens, pass_s)

    def count(self, num_tokens: int, pass_s: float) -> int:
        """Count a pass that decoded so many tokens. Return how many uses of experts it missed."""
        now = self._counts()
        spent, self._before = now - self._before, now
        self.total += spent + Decoding(num_tokens, pass_s)
        if self.total.tokens <= _WARM_TOKENS:
            self._warming = self.total
        return spent.misses

    def _counts(self) -> Decoding:
        experts, files = self._engine.experts, self._engine.files
        if experts is None or files is None:
            return Decoding()
        hits, misses = experts.hits, experts.misses
        return Decoding(0, 0.0, files.wait_s, hits, misses, files.bytes_read)
