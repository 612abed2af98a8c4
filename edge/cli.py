"""The commands of `haversack`. Each is a few calls of the public API. Its errors are
HaversackErrors, which `edge.__main__` turns into one line and an exit code.

A command imports inside its function what no other command needs, so that a chat begins within a
second.
"""

import logging
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from haversack.devices.errors import HaversackError
from haversack.devices.units import format_bytes
from haversack.edge import hub
from haversack.edge.backend_commands import backend_app
from haversack.edge.chat_loop import ChatLoop
from haversack.edge.chat_models import ChatModels
from haversack.edge.chat_settings import ChatSettings
from haversack.edge.chat_talk import talk_here
from haversack.edge.computer_options import DoctorOptions
from haversack.edge.console import (
    end_text,
    figure_text,
    load_progress,
    log_to_stderr,
    notice,
    summary,
    wants_detail,
    write_json,
    write_table,
    write_text,
)
from haversack.edge.fidelity_options import FidelityOptions
from haversack.edge.generation import Generation
from haversack.edge.given_text import checked_text
from haversack.edge.kept_terminal import kept_terminal
from haversack.edge.kv_options import ClearOptions, KeepingOptions
from haversack.edge.loading import LoadOptions, load
from haversack.edge.measure_options import BenchOptions, EvalOptions
from haversack.edge.model import Model
from haversack.edge.model_plan import DENSE, Plan
from haversack.edge.option_groups import takes
from haversack.edge.options import (
    CacheOptions,
    ChatOptions,
    DraftOptions,
    LogOptions,
    LowOptions,
    ModelOptions,
    NameOptions,
    OutputOptions,
    RunOptions,
    SamplingOptions,
)
from haversack.edge.sampling import WINDOW_FIRST_TOKENS
from haversack.edge.server.options import ServeOptions
from haversack.edge.speculate import AUTO
from haversack.quant.description import description
from haversack.quant.gguf import ModelGeometry, read_geometry

_log = logging.getLogger("haversack.cli")

app = typer.Typer(
    help="Carry a big Mixture-of-Experts language model in a small memory.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(backend_app, name="backend")


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        write_text(f"haversack {version('haversack')}\n")
        raise typer.Exit


@app.callback()
def without_command(
    context: typer.Context,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Carry a big Mixture-of-Experts language model in a small memory."""
    del show_version  # the callback of the option has shown it
    if context.invoked_subcommand is None:
        write_text(context.get_help() + "\n")


# ------------------------------------------------------------------ generation
@app.command("run")
@takes(ModelOptions, RunOptions, SamplingOptions, KeepingOptions, OutputOptions, LogOptions)
def run_model(
    model: ModelOptions,
    request: RunOptions,
    choice: SamplingOptions,
    fidelity: KeepingOptions,
    output: OutputOptions,
    log: LogOptions,
) -> None:
    """Go on from a text. The built-in model answers where no MODEL is given."""
    log_to_stderr(log.verbose)
    first_tokens = WINDOW_FIRST_TOKENS if request.window else 0
    sampling = replace(choice.sampling(), seed=choice.chosen_seed(), keep_first=first_tokens)
    planned = fidelity.plan(model, drafts=request.asked_drafts())
    # read last, because it may wait for a pipe: what else is wrong is told before
    prompt = request.text(planned.shape.ctx_tokens)
    tell_of_long_context(planned)
    with opened(planned, fidelity, log, speculate=request.speculate) as loaded:
        generation = loaded.generate(prompt, request.max_tokens, sampling)
        _log.info("prefill of %d tokens begins", generation.prompt_tokens)
        _stream(generation, silent=output.json)
        if output.json:
            budget = [asdict(entry) for entry in loaded.budget()]
            devices = [use.to_dict() for use in loaded.devices()]
            answer = _answer(generation, planned, sampling.seed)
            write_json({**answer, "budget": budget, "devices": devices})
        elif generation.stats is not None and wants_detail(log.verbose):
            notice(summary(generation.stats, len(generation.tokens)))


def _stream(generation: Generation, *, silent: bool) -> None:
    """Run a generation to its end and write its text to stdout unless `silent`."""
    text = ""
    with closing(generation):
        try:
            for text in generation:
                if not silent:
                    write_text(text)
        except HaversackError:
            end_text("" if silent else text)  # so that the error begins a line of its own
            raise
    end_text("" if silent else text)


def _answer(generation: Generation, planned: Plan, seed: int) -> dict[str, Any]:
    """Return what `run --json` prints."""
    stats = {} if generation.stats is None else generation.stats.to_dict()
    return {
        "text": generation.text,
        **stats,
        "tokens": len(generation.tokens),
        "token_ids": generation.tokens,
        "prompt_tokens": generation.prompt_tokens,
        "finish_reason": generation.finish_reason,
        "mode": planned.mode,
        "seed": seed,
    }


@app.command("chat")
@takes(ModelOptions, ChatOptions, SamplingOptions, KeepingOptions, LogOptions)
def chat_with_model(
    model: ModelOptions,
    chat: ChatOptions,
    choice: SamplingOptions,
    fidelity: KeepingOptions,
    log: LogOptions,
) -> None:
    """Talk with a model; /help in the chat shows its commands."""
    log_to_stderr(log.verbose)
    # the seed is given to the model, so that replies differ but the whole chat can be repeated
    sampling = replace(choice.sampling(), seed=-1)
    system = None if chat.system is None else checked_text("--system", chat.system)
    seed = choice.chosen_seed()
    settings = ChatSettings(sampling, system, chat.max_tokens, chat.window, chat_seed=seed)
    talk = talk_here()

    def planned(path: Path | None) -> Plan:
        return fidelity.plan(replace(model, model=path), drafts=chat.asked_drafts())

    def load_planned(each: Plan) -> Model:
        tell_of_long_context(each)
        return opened(each, fidelity, log, seed, speculate=chat.speculate)

    with kept_terminal(), ChatModels(model.model, planned, load_planned) as models:
        ChatLoop(models, settings, talk, log.verbose).run()


def tell_of_long_context(planned: Plan) -> None:
    """Tell that a context is longer than what the model was trained with. A benchmark does not:
    its random tokens make no sense anyway."""
    if planned.beyond_training:
        notice(f"haversack: {planned.beyond_training}")


def opened(
    planned: Plan,
    cache: CacheOptions,
    log: LogOptions,
    seed: int | None = None,
    warm_start: bool = True,
    speculate: str = AUTO,
) -> Model:
    """Load the model of a plan with progress bars."""
    if planned.mode == DENSE:
        notice(f"haversack: {planned.path.name} has no routed experts: it runs plainly, in memory")
    with load_progress(log.verbose) as progress:
        options = replace(
            cache.load_options(), progress=progress, warm_start=warm_start, speculate=speculate
        )
        return load(planned, seed=seed, options=options)


@app.command("serve")
@takes(ModelOptions, ServeOptions, KeepingOptions, LogOptions)
def serve_models(
    model: ModelOptions, asked: ServeOptions, fidelity: KeepingOptions, log: LogOptions
) -> None:
    """Answer requests in the protocols of OpenAI and Anthropic, and show a page for chats."""
    from haversack.edge.server.serving import serve

    log_to_stderr(log.verbose)
    models = {name: replace(model, model=path) for name, path in asked.paths(model.model).items()}

    def planned(each: ModelOptions) -> Plan:
        return fidelity.plan(each, sequences=asked.parallel, drafts=asked.asked_drafts())

    for each in models.values():
        tell_of_long_context(planned(each))  # raises before anything is served

    def load_one(each: ModelOptions) -> Model:
        options = replace(fidelity.load_options(), speculate=asked.speculate)
        return load(planned(each), options=options)

    serve({name: partial(load_one, each) for name, each in models.items()}, asked)


# -------------------------------------------------------------------- planning
@app.command("plan")
@takes(ModelOptions, DraftOptions, FidelityOptions, OutputOptions)
def show_plan(
    model: ModelOptions, drafts: DraftOptions, fidelity: FidelityOptions, output: OutputOptions
) -> None:
    """Show how a budget would be spent; exit code 3 if it does not suffice."""
    from haversack.edge.forecasting import known_facts
    from haversack.edge.plan_view import PlanView

    log_to_stderr(False)
    with geometry_before_download(model) as geometry:

        def replan(ctx: int | None) -> Plan:
            return fidelity.plan(replace(model, ctx=ctx), geometry, drafts=drafts.asked_drafts())

        planned = replan(model.ctx)
        view = PlanView(planned, known_facts(planned, fidelity.folder, measure=True), replan)
        if output.json:
            write_json(view.to_dict())
        else:
            view.show()


@contextmanager
def geometry_before_download(model: ModelOptions) -> Generator[ModelGeometry]:
    """Yield the model's geometry; of one of the hub that was not downloaded only the header is
    read."""
    name = model.remote_name
    if name is None:
        yield read_geometry(model.path)
        return
    with hub.remote_geometry(name) as geometry:
        notice(f"haversack: {hub.described(name, geometry)}")
        yield geometry


@app.command("bench")
@takes(ModelOptions, BenchOptions, FidelityOptions, OutputOptions, LogOptions)
def bench_model(
    model: ModelOptions,
    asked: BenchOptions,
    fidelity: FidelityOptions,
    output: OutputOptions,
    log: LogOptions,
) -> None:
    """Measure a model on random tokens: a prompt at once, then one token after the other."""
    from haversack.edge.bench_command import run_bench

    log_to_stderr(log.verbose)
    sized = replace(model, ctx=asked.num_tokens if model.ctx is None else model.ctx)
    with asked.simulated() as gpu:
        vram = [] if gpu is None else [f"{gpu.name}={gpu.memory_bytes}B"]
        planned = fidelity.plan(replace(sized, vram=[*(model.vram or []), *vram] or None))
        load_planned = partial(opened, planned, fidelity, log, warm_start=False)
        run_bench(planned, asked, fidelity.folder, load_planned, gpu, as_json=output.json)


@app.command("eval")
@takes(ModelOptions, EvalOptions, FidelityOptions, OutputOptions, LogOptions)
def evaluate_fidelity(
    model: ModelOptions,
    asked: EvalOptions,
    fidelity: FidelityOptions,
    output: OutputOptions,
    log: LogOptions,
) -> None:
    """Measure on a text what a fidelity and a KV type cost in quality, beside exact."""
    from haversack.edge.evaluation import Evaluation, draw_pareto, plans_to_measure, text_of

    log_to_stderr(log.verbose)
    assert asked.text is not None, "the options check it"
    text = text_of(asked.text, asked.tokens)
    exact, *others = plans_to_measure(model, fidelity, asked.all)
    tell_of_long_context(exact)
    with load_progress(log.verbose) as progress:
        options = LoadOptions(cache_dir=fidelity.folder, progress=progress, warm_start=False)
        evaluation = Evaluation(text, asked.tokens, options)
        results = [result.to_dict() for result in evaluation.run(exact, others)]
    if output.json:
        write_json({"model": str(exact.path), "mode": exact.mode, "levels": results})
    else:
        title = f"{exact.path.name} in {format_bytes(exact.ram_bytes)}"
        rows = [_cells(result) for result in results]
        count = results[0]["num_tokens"]
        write_table(f"{title}, {count} tokens", list(rows[0]), [list(row.values()) for row in rows])
    if asked.all:
        try:
            draw_pareto(results, asked.png)
        except HaversackError as error:  # the table is what was measured
            notice(f"haversack: {error}")


def _cells(found: Mapping[str, Any]) -> dict[str, str]:
    """Return a row of an evaluation's table, by column."""
    uses = max(1, sum(found[f"uses_{level}"] for level in ("high", "low", "skipped")))
    return {
        "fidelity": found["fidelity"],
        "KV": found["kv_type"],
        ">perplexity": f"{found['perplexity']:.4g}",
        ">rise": f"{found['perplexity_rise']:+.2%}",
        ">KL mean": f"{found['kl_mean']:.3g}",
        ">KL 99.9 %": f"{found['kl_p999']:.3g}",
        ">top-1": f"{found['top1_agreement']:.1%}",
        ">low": f"{found['uses_low'] / uses:.1%}",
        ">skipped": f"{found['uses_skipped'] / uses:.1%}",
        ">leaned": f"{found['uses_leaned'] / uses:.1%}",
        ">read a token": format_bytes(int(found["bytes_read_per_token"])),
        ">tok/s": f"{found['tok_s']:.1f}",
    }


# -------------------------------------------------------------------- computer
@app.command("doctor")
@takes(DoctorOptions, CacheOptions, OutputOptions)
def examine_computer(patient: DoctorOptions, cache: CacheOptions, output: OutputOptions) -> None:
    """Show what haversack finds on this computer, and what could be better."""
    from haversack.edge.doctor import examine

    findings = examine(cache.folder, patient.model, patient.device or ())
    if output.json:
        write_json(
            {f.name: {"value": f.value, "source": f.source, "advice": f.advice} for f in findings}
        )
        return
    rows = [(_title(finding.name), finding.shown, finding.source) for finding in findings]
    write_table("this computer", ("what", "found", "source"), rows)
    for finding in findings:
        if finding.advice:
            write_text(f"{_title(finding.name)}: {finding.advice}\n")


def _title(name: str) -> str:
    """Return the name of a finding as people read it, without its unit."""
    return name.replace("_bytes_s", "_speed").removesuffix("_bytes").replace("_", " ")


@app.command("prepare")
@takes(ModelOptions, LowOptions, CacheOptions, OutputOptions, LogOptions)
def prepare_model(
    model: ModelOptions,
    low: LowOptions,
    cache: CacheOptions,
    output: OutputOptions,
    log: LogOptions,
) -> None:
    """Make low copies of a model's experts, which --fidelity balanced and fast read. Interrupted,
    it goes on where it was."""
    from haversack.edge.preparation import PrepareOptions, prepare

    log_to_stderr(log.verbose)
    with load_progress(log.verbose) as progress:
        options = PrepareOptions(model.ram, model.threads, cache.folder, progress)
        made = prepare(model.path, low.low, low.imatrix, low.calibrate, options)
    if output.json:
        write_json({"model": str(model.path), **asdict(made), "path": str(made.path)})
        return
    for note in made.notes:
        notice(f"haversack: {note}")
    damaged = f", {made.num_damaged} of them were damaged" if made.num_damaged else ""
    write_text(
        f"{made.source}: {format_bytes(made.disk_bytes)} beside {format_bytes(made.expert_bytes)}"
        f" of {made.num_experts} experts, {made.num_made} made now{damaged}\n{made.path}\n"
    )


# ---------------------------------------------------------------------- models
@app.command("pull")
@takes(NameOptions)
def pull_model(asked: NameOptions) -> None:
    """Download a model of the Hugging Face hub, or what has changed of it."""
    write_text(f"{hub.pull(asked.hub_name)}\n")


@app.command("ls")
@takes(OutputOptions)
def list_models(output: OutputOptions) -> None:
    """List the models of the Hugging Face hub that were downloaded, by haversack or others."""
    models = hub.list_models()
    if output.json:
        found = [(str(name), str(path), size) for name, path, size in models]
        write_json({"models": [{"model": n, "path": p, "disk_bytes": s} for n, p, s in found]})
        return
    if not models:
        write_text("no model of the hub is in its cache: haversack pull org/repo:QUANT\n")
        return
    rows = [(str(name), format_bytes(num_bytes)) for name, _, num_bytes in models]
    write_table("models of the hub", ("model", ">disk"), rows)


@app.command("rm")
@takes(NameOptions)
def remove_model(asked: NameOptions) -> None:
    """Remove a downloaded model from the cache of the Hugging Face hub."""
    write_text(f"{format_bytes(hub.remove(asked.hub_name))} freed\n")


@app.command("show")
@takes(ModelOptions, OutputOptions)
def show_model(model: ModelOptions, output: OutputOptions) -> None:
    """Show what a model is: its architecture, experts, block types, context and licence."""
    name = model.remote_name
    with hub.remote_geometry(name) if name else nullcontext(read_geometry(model.path)) as geometry:
        facts = description(geometry)
    if output.json:
        write_json(facts)
        return
    rows = [(_title(key), figure_text(key, value)) for key, value in facts.items()]
    write_table(str(name or geometry.path.name), ("", ""), rows)


@app.command("cache")
@takes(ClearOptions, CacheOptions, OutputOptions)
def show_cache(clear: ClearOptions, cache: CacheOptions, output: OutputOptions) -> None:
    """List the trunk files, low copies, texts and what drafts come from, or remove them."""
    from haversack.edge.cache_list import cache_objects, cache_rows, list_cache, remove_cache

    files = list_cache(cache.folder)
    disk_bytes = sum(file.disk_bytes for each in files.values() for file in each)
    freed_bytes = remove_cache(cache.folder) if clear.clear else 0
    if output.json:
        totals = {"disk_bytes": disk_bytes, "freed_bytes": freed_bytes}
        write_json({"cache_dir": str(cache.folder), **cache_objects(files), **totals})
    elif clear.clear:
        write_text(f"{format_bytes(freed_bytes)} freed in {cache.folder}\n")
    elif not any(files.values()):
        write_text(f"nothing is cached in {cache.folder}\n")
    else:
        title = f"{format_bytes(disk_bytes)} in {cache.folder}"
        write_table(title, ("model", "what", ">disk", "file"), cache_rows(files))
