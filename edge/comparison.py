"""Plain llama.cpp at the same work as a benchmark's, in a process of its own, so that neither its
memory nor its page cache is ours. `python -m haversack.edge.comparison` is that process."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from haversack.devices.errors import HaversackError
from haversack.edge.bench import BenchResult, Work, logits_sha256
from haversack.edge.child_program import child_command
from haversack.edge.measure_options import LLAMA_CPP
from haversack.edge.model_plan import Plan
from haversack.edge.plain_llama import PlainLlama, drop_pages
from haversack.edge.replay import Replay, Trace
from haversack.quant.gguf import read_geometry


@dataclass(frozen=True)
class PlainResult:
    """What the work took plain llama.cpp. `forcing_s_per_token` are the seconds of forcing a
    routing (see `PlainTime`); the other seconds do not contain them."""

    prefill_s: float
    decode_s_per_token: float
    forcing_s_per_token: float
    logits_sha256: str

    def beside(self, ours: BenchResult) -> dict[str, Any]:
        """Return its figures for a table of ours, and how many times faster we are. `same_logits`
        says that the last logits of both engines have the same bits."""
        return {
            "compare": LLAMA_CPP,
            "compare_prefill_s": self.prefill_s,
            "compare_prefill_tok_s": ours.prompt_tokens / self.prefill_s,
            "compare_decode_s_per_token": self.decode_s_per_token,
            "compare_decode_tok_s": 1 / self.decode_s_per_token,
            "compare_forcing_s_per_token": self.forcing_s_per_token,
            "prefill_times_faster": self.prefill_s / ours.prefill_s,
            "decode_times_faster": self.decode_s_per_token / ours.decode_s_per_token,
            "same_logits": self.logits_sha256 == ours.logits_sha256,
        }


def measure_plain(planned: Plan, work: Work) -> PlainResult:
    """Have plain llama.cpp do `work` with the plan's threads and batches; its weights are mapped.

    No page of the model is in memory when it begins. Nothing but a control group limits its memory:
    the group of this process. Raises HaversackError if it fails.
    """
    drop_pages(planned.geometry.paths)
    shape = planned.shape
    job = {
        **asdict(work),
        "trace": None if work.trace is None else str(work.trace),
        "model": str(planned.path),
        "context": [shape.ctx_tokens, shape.threads, shape.batch_tokens],
    }
    command = child_command("haversack.edge.comparison")
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
    if done.returncode != 0:
        raise HaversackError(
            f"plain llama.cpp ended with exit code {done.returncode} ({_reason(done)}):"
            " give it more memory, or leave --compare out"
        )
    return PlainResult(**json.loads(done.stdout))


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that the process wrote, which says nothing if the system killed it."""
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    return (done.stderr.splitlines() or ["it gave no reason"])[-1]


def _do(job: Mapping[str, Any]) -> PlainResult:
    tokens, prompt, warm = job["tokens"], job["prompt_tokens"], job["warm_tokens"]
    path, (ctx_tokens, threads, batch_tokens) = Path(job["model"]), job["context"]
    replay = None
    if job["trace"] is not None:
        replay = Replay(Trace.load(Path(job["trace"])), read_geometry(path))
    batches = [tokens[i : min(i + batch_tokens, prompt)] for i in range(0, prompt, batch_tokens)]
    singles = [[token] for token in tokens[prompt:]]
    with PlainLlama(path, ctx_tokens, threads, batch_tokens, replay) as plain:
        prefill_s, _ = plain.timed(batches)
        plain.timed(singles[:warm])
        decode_s, forcing_s = plain.timed(singles[warm:])
        digest = logits_sha256(plain.last_logits())
    num_timed = len(singles) - warm
    return PlainResult(prefill_s, decode_s / num_timed, forcing_s / num_timed, digest)


def main() -> int:
    """Do the work described on stdin; the exit status."""
    print(json.dumps(asdict(_do(json.load(sys.stdin)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
