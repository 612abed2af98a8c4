"""What a fidelity costs: a model runs over a text, exact first, and each fidelity is metered beside
it while its experts are streamed for real.

Every run has the whole budget for itself, as in use. The logits of exact wait in a file without a
name in between, so memory does not grow with the text; the number of tokens bounds the file.
"""

import codecs
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from haversack.devices.errors import ModelFileError, PromptError, StorageError
from haversack.devices.llama import EXACT_KV_TYPE, KV_TYPES
from haversack.devices.units import format_bytes
from haversack.edge.cache_dir import default_cache_dir
from haversack.edge.fidelity import MODES, Fidelity
from haversack.edge.fidelity_options import FidelityOptions
from haversack.edge.given_text import longest_text_bytes, read_at_most
from haversack.edge.loading import LoadOptions, load
from haversack.edge.measure_options import LEAST_EVAL_TOKENS
from haversack.edge.model import Model
from haversack.edge.model_plan import EXACT, Plan
from haversack.edge.options import ModelOptions
from haversack.edge.picture import blank_figure, write_picture
from haversack.edge.stats import Stats
from haversack.quant.fidelity import FidelityMeter, FidelityReport, Logits

_log = logging.getLogger("haversack.evaluation")

_PROMPT_SHARE = 8  # an eighth of each piece of text is computed as a prompt
_WARM_TOKENS = 64  # decoded first, while slots fill; they do not count
_COUNTS = (
    *("uses_high", "uses_low", "uses_skipped", "uses_leaned", "upgraded"),
    *("bytes_read", "saved_bytes"),
)


def plans_to_measure(model: ModelOptions, fidelity: FidelityOptions, every: bool) -> list[Plan]:
    """Plan exact, and what is asked for, or with `every` all KV types and all fidelities, these
    without and with the bias; what stays exact is left out. A KV type that the model cannot have is
    logged and left out of all. Raises what `edge.plan` raises, and PromptError for shares with
    `every`."""
    if not every:
        asked = [fidelity.asked()]
    elif fidelity.low_share is not None or fidelity.skip_share is not None:
        raise PromptError("--all measures the modes' own shares: leave the others out")
    else:
        asked = [
            Fidelity(mode, None if mode == EXACT else fidelity.low_from, route_bias=bias)
            for bias in dict.fromkeys((0.0, fidelity.route_bias))
            for mode in MODES
        ]
    exact, own = replace(model, kv_type=EXACT_KV_TYPE).plan(), model.plan()
    others = [own] if own.shape.kv_type != EXACT_KV_TYPE else []
    for kv_type in KV_TYPES if every else ():
        if kv_type not in (EXACT_KV_TYPE, own.shape.kv_type):
            try:
                others.append(replace(model, kv_type=kv_type).plan())
            except ModelFileError as error:
                _log.warning("%s is not measured: %s", kv_type, error)
    applied = [each.applied(own, fidelity.folder) for each in asked]
    return [exact, *others, *(planned for planned in applied if planned is not own)]


@dataclass(frozen=True)
class LevelResult:
    """What was measured at one fidelity with one type of the KV cache: the meter's report, and the
    counts of `Stats` for the tokens that were metered."""

    fidelity: str
    kv_type: str
    report: FidelityReport
    uses_high: int
    uses_low: int
    uses_skipped: int
    uses_leaned: int
    upgraded: int
    bytes_read: int
    saved_bytes: int
    bytes_read_per_token: float
    tok_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain values."""
        figures = asdict(self)
        report = figures.pop("report") | {"perplexity_rise": self.report.perplexity_rise}
        kind = {name: figures.pop(name) for name in ("fidelity", "kv_type")}
        return {**kind, **report, **figures}


class Evaluation:
    """Measures the first `most_tokens` tokens of a text at one fidelity after the other, with the
    model loaded as `options` say. The file of logits lies in their folder."""

    def __init__(self, text: str, most_tokens: int, options: LoadOptions) -> None:
        self._text, self._most_tokens, self._options = text, most_tokens, options
        self._folder = Path(options.cache_dir or default_cache_dir())

    def run(self, exact: Plan, others: Sequence[Plan]) -> Iterator[LevelResult]:
        """Yield the result of exact, then those of other plans of the same model. Raises
        PromptError for a text that is too short, StorageError, and what loading raises."""
        with _scratch_file(self._folder) as scratch:
            with load(exact, options=self._options) as model:
                pieces = self._pieces(model)
                self._refuse_small_disk(len(pieces[0]) * len(pieces), model.vocab_size)
                yield self._measured(model, pieces, lambda row: _written(scratch, row))
                row_bytes = 4 * model.vocab_size
            for planned in others:
                scratch.seek(0)
                with load(planned, options=self._options) as model:
                    yield self._measured(model, pieces, lambda _: _read(scratch, row_bytes))

    def _pieces(self, model: Model) -> list[list[int]]:
        """Return the text's tokens in pieces that fill the context; each begins as a text does."""
        begin = model.tokenize("")
        tokens = model.tokenize(self._text, add_special=False)[: self._most_tokens]
        if len(tokens) < LEAST_EVAL_TOKENS:
            raise PromptError(
                f"{len(tokens)} tokens of text are to be measured: give a text, and -n, of"
                f" {LEAST_EVAL_TOKENS} or more"
            )
        length = model.plan.shape.ctx_tokens - len(begin)
        pieces = [begin + tokens[start : start + length] for start in range(0, len(tokens), length)]
        enough = [piece for piece in pieces if len(piece) >= _PROMPT_SHARE]  # all but the last
        if len(enough[0]) <= 2 * _WARM_TOKENS:
            raise PromptError(
                f"a context of {model.plan.shape.ctx_tokens} tokens is too short to measure in:"
                f" give --ctx {LEAST_EVAL_TOKENS} or more"
            )
        return enough

    def _refuse_small_disk(self, num_tokens: int, vocab_size: int) -> None:
        need_bytes, free_bytes = 4 * num_tokens * vocab_size, shutil.disk_usage(self._folder).free
        if need_bytes > free_bytes:
            raise StorageError(
                f"the logits of {num_tokens} tokens need {format_bytes(need_bytes)},"
                f" {self._folder} has {format_bytes(free_bytes)} free: lower --tokens or choose"
                " another folder with --cache-dir"
            )

    def _measured(
        self, model: Model, pieces: Sequence[Sequence[int]], exact: Callable[[Logits], Logits]
    ) -> LevelResult:
        """Run over the pieces. `exact` gives the logits of exact for those that are there."""
        meter, spent, what = FidelityMeter(), list[Stats](), f"{model.plan.fidelity}: measuring"
        num_tokens, num_done = sum(map(len, pieces)), 0
        report = self._options.progress or (lambda _what, _share: None)
        for number, piece in enumerate(pieces):
            report(what, num_done / num_tokens)  # before the prompt, which may take minutes
            num_prompt = len(piece) // _PROMPT_SHARE
            num_passed = num_prompt + 1 + (_WARM_TOKENS if number == 0 else 0)
            with closing(model.iter_logits(piece[:-1], num_prompt, num_passed - 1)) as rows:
                for _ in range(num_prompt, num_passed):
                    next(rows)
                before = model.stats()
                for place, row in enumerate(rows, num_passed):
                    meter.add(exact(row), row, piece[place])
                    report(what, (num_done + place + 1) / num_tokens)
                spent.append(model.stats().since(before))
            num_done += len(piece)
        return _result(model.plan, meter.report(), spent)


def _name_of(planned: Plan) -> str:
    bias = "" if planned.leaning is None else f", bias {planned.leaning.bias:g}"
    return f"{planned.fidelity}{bias}"


def _result(planned: Plan, report: FidelityReport, spent: Sequence[Stats]) -> LevelResult:
    counts = {name: sum(getattr(part, name) for part in spent) for name in _COUNTS}
    return LevelResult(
        _name_of(planned),
        planned.shape.kv_type,
        report,
        **counts,
        bytes_read_per_token=counts["bytes_read"] / report.num_tokens,
        tok_s=report.num_tokens / sum(part.decode_s for part in spent),
    )


def _scratch_file(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise StorageError(
            f"cannot write to {folder}: {error.strerror}: choose another folder with --cache-dir"
        ) from error


def _written(scratch: IO[bytes], row: Logits) -> Logits:
    try:
        scratch.write(row.data)
    except OSError as error:
        raise StorageError(
            f"cannot keep the logits of exact: {error.strerror}: lower --tokens or choose another"
            " folder with --cache-dir"
        ) from error
    return row


def _read(scratch: IO[bytes], row_bytes: int) -> Logits:
    return np.frombuffer(scratch.read(row_bytes), np.float32)


def text_of(path: Path, most_tokens: int) -> str:
    """Return as much of a text file as `most_tokens` tokens can be. Raises PromptError."""
    try:
        with path.open("rb") as file:
            data = read_at_most(file, longest_text_bytes(most_tokens))
        return codecs.getincrementaldecoder("utf-8-sig")().decode(data)  # its end may be cut
    except OSError as error:
        raise PromptError(f"cannot read --text {path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise PromptError(f"--text {path} is not UTF-8 text: convert it") from None


def draw_pareto(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the bytes read a token against the divergence from exact as a PNG, of results as dicts.
    Raises HaversackError where matplotlib is missing, StorageError."""
    figure = blank_figure(6, 4)
    axes = figure.subplots()
    mib_read = [found["bytes_read_per_token"] / 2**20 for found in results]
    divergences = [found["kl_mean"] for found in results]
    axes.plot(mib_read, divergences, "o-")
    for found, x, y in zip(results, mib_read, divergences, strict=True):
        kind = "" if found["kv_type"] == EXACT_KV_TYPE else f", {found['kv_type']}"
        axes.annotate(
            f"{found['fidelity']}{kind}", (x, y), textcoords="offset points", xytext=(6, 6)
        )
    axes.set(xlabel="MiB read a token", ylabel="mean KL divergence from exact, nats")
    axes.set_xlim(left=0)
    write_picture(figure, path)
