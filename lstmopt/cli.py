"""The shell's commands: they read options, call the package and print; the logic is elsewhere."""

from __future__ import annotations

import re
import shlex
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lstmopt import __version__
from lstmopt.errors import ContractError, LstmoptError
from lstmopt.precision import SPARSE, SPARSE_PRECISIONS

if TYPE_CHECKING:
    from lstmopt.targets import Target

FILE = click.Path(path_type=Path)
LARGEST_SCALE = 2.0
TRAINING = {"budget": "budget", "steps": "steps", "scale": "scales", "compression": "compression"}
"""Options of `optimize` that are for training alone, and what they are called inside."""

RESUMED = {"optimize", "demo", "probe"}
"""Commands that find again what an interrupted call has done."""

Shapes = Sequence[tuple[str, tuple[int, ...]]]


class Percent(click.ParamType[float]):
    """A share such as ``2%`` or ``0.02``, as a fraction; a bare number of 1 or more could mean either."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the fraction."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e-\d+)?|\.\d+)\s*(%?)\s*", str(value))
        if match is None:
            self.fail(f"{value!r} is not a share such as 2% or 0.02", param, ctx)
        number = float(match[1])
        if not match[2] and number >= 1:
            self.fail(f"{value!r} is not clear: write {number:g}% or {100 * number:g}%", param, ctx)
        return number / (100 if match[2] else 1)


class Duration(click.ParamType[float]):
    """A time such as ``90s``, ``10m`` or ``1h``, as seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the seconds."""
        # A bare number, from a configuration, is in seconds.
        text = f"{value}s" if isinstance(value, (int, float)) else value
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smh])\s*", text)
        seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
        if seconds <= 0:
            self.fail(f"{value!r} is not a time such as 90s, 10m or 1h", param, ctx)
        return seconds


class InputShape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """An input's shape such as ``input=1x576``, as its name and sizes."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Returns the name and the sizes."""
        match = re.fullmatch(r"(.+)=(\d+(?:x\d+)*)", value)
        if match is None:
            self.fail(f"{value!r} is not a shape such as input=1x576", param, ctx)
        return match[1], tuple(int(size) for size in match[2].split("x"))


class InputValue(click.ParamType[tuple[str, float]]):
    """An input's value such as ``sr=16000``, as its name and the number."""

    name = "value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Returns the name and the number."""
        name, sign, number = str(value).rpartition("=")
        try:
            if not name or not sign:
                raise ValueError
            truths = {"true": 1.0, "false": 0.0}
            return name, truths[number.lower()] if number.lower() in truths else float(number)
        except ValueError:
            self.fail(f"{value!r} is not an input's value such as sr=16000", param, ctx)


def _chosen(target: str, shapes: Shapes, threads: int | None = None) -> Target:
    """Returns the target with the shapes and the threads that were given."""
    from lstmopt.targets import load_target, with_shapes

    chosen = with_shapes(load_target(target), dict(shapes))
    return chosen if threads is None else chosen.model_copy(update={"threads": threads})


def _said(target: str, shapes: Shapes) -> list[str]:
    """Returns the options that mean the same target in another call."""
    said = ["--target", target]
    for shape in shapes:
        said += ["--shape", _shape_text(shape)]
    return said


def _shape_text(shape: tuple[str, tuple[int, ...]]) -> str:
    """Writes an input's shape as the shell reads it."""
    return f"{shape[0]}={'x'.join(map(str, shape[1]))}"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="lstmopt")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Makes a trained LSTM in ONNX small, as accurate, and fast on the machine that runs it."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@contextmanager
def progress_shown() -> Iterator[Callable[[str, float], None]]:
    """Shows progress on stderr: a bar on a terminal, a line a stage elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        shown, since = "", 0.0

        def line(text: str, fraction: float) -> None:
            nonlocal shown, since
            # Texts that differ in their numbers alone are one activity: a line of it every ten seconds.
            kind, now = re.sub(r"\d.*", "", text), time.monotonic()
            if kind != shown or now - since >= 10 or fraction >= 1.0:
                shown, since = kind, now
                console.print(text, highlight=False, markup=False, soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=1.0)
        width = max(20, console.width - 52)  # of what the bar and the time leave
        # A bar that is full stops its clock, and a stage that is done is not all of the work.
        yield lambda text, fraction: bars.update(
            task, description=text[:width], completed=min(fraction, 0.99)
        )


def _config(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Reads the options' defaults from a TOML file."""
    if value is None:
        return None
    try:
        values = tomllib.loads(value.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LstmoptError(
            f"--config {value}", f"cannot be read ({error})", "mend the file or the path"
        ) from error
    names = {parameter.name: parameter for parameter in ctx.command.params}
    # As in the shell: `scale`, which is called otherwise inside.
    spelt = {option.lstrip("-"): str(p.name) for p in ctx.command.params for option in p.opts}
    defaults = {}
    for key, given in values.items():
        name = spelt.get(key, key).replace("-", "_")
        if name not in names:
            raise LstmoptError(f"--config {value}", f"unknown option {key!r}", "see lstmopt optimize --help")
        many = getattr(names[name], "multiple", False)
        items = given if many and isinstance(given, list) else [given]
        types, wanted = _wanted(names[name])
        # Exactly: true is an int to Python.
        if not all(type(item) in types for item in items):
            raise LstmoptError(f"--config {value}", f"{key} = {given!r} is not {wanted}", "mend that line")
        defaults[name] = items if many else given
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return value


def _wanted(parameter: click.Parameter) -> tuple[tuple[type, ...], str]:
    """Returns the types that a configuration may give an option in, and what they are called."""
    if getattr(parameter, "is_flag", False):
        return (bool,), "true or false"
    if isinstance(parameter.type, click.IntRange):
        return (int,), "a whole number"
    if isinstance(parameter.type, click.FloatRange):
        return (int, float), "a number"
    if isinstance(parameter.type, Percent | Duration):
        return (int, float, str), "a number, or text as in the shell"
    return (str,), "text"


def _percent(share: float) -> str:
    """Writes a share as the shell reads it."""
    return f"{100 * share:.12g}%"


def _save_config(path: Path, ctx: click.Context) -> None:
    """Writes the TOML that repeats the call."""
    import tomli_w

    left_out = {"config", "save_config", "as_json", "dry_run", "fresh"}
    if ctx.params.get("trained") is not None:
        left_out |= set(TRAINING.values())

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    values = {
        name.replace("_", "-"): plain(value)
        for name, value in ctx.params.items()
        if value is not None and name not in left_out
    }
    for parameter in ctx.command.params:
        name = str(parameter.name).replace("_", "-")
        if isinstance(parameter.type, Percent) and name in values:
            given = values[name]
            values[name] = [_percent(share) for share in given] if parameter.multiple else _percent(given)
        elif isinstance(parameter.type, InputShape) and name in values:
            values[name] = [_shape_text(shape) for shape in values[name]]
    path.write_text(tomli_w.dumps(values), encoding="utf-8")


_target = click.option(
    "--target",
    default="local",
    show_default=True,
    help="xeon, local, nvidia, cudnn, or a TOML file of your own.",
)
_shape = click.option(
    "--shape",
    "shapes",
    type=InputShape(),
    multiple=True,
    help="NAME=1x576: a whole input's shape, where batch and sequence do not tell it; repeatable.",
)
_threads = click.option(
    "--threads", type=click.IntRange(min=1), help="Of one inference, in place of the target's."
)
_stateful = click.option(
    "--stateful", is_flag=True, help="Also a form that keeps its states inside; see Stream in run.py."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


@cli.command(short_help="Optimises MODEL for a target; writes an artifact.")
@click.argument("model", type=FILE)
@_target
@_shape
@_threads
@click.option("--data", help="Training data: FILE.npz or module:function.")
@click.option("--val", help="Validation data; a tenth of --data where it is not given.")
@click.option("--test", help="Test data, only reported.")
@click.option(
    "--task", type=click.Choice(["lm", "classify", "regress", "distill"]), help="Found where not given."
)
@click.option("--max-degradation", type=Percent(), help="Contract; 0% with labels, 1% without, by default.")
@click.option(
    "--compression",
    type=click.FloatRange(min=1),
    default=4.0,
    show_default=True,
    help="Times fewer non-zero LSTM or GRU weights to aim for.",
)
@click.option(
    "--scale",
    "scales",
    type=Percent(),
    multiple=True,
    help="Hidden sizes to try, as a share of the original's such as 75%; repeatable.",
)
@click.option(
    "--keep-state-shape",
    is_flag=True,
    help="State inputs and outputs keep their shapes, with zeros for removed units.",
)
@_stateful
@click.option("--trained", type=FILE, help="Deploy this model, trained before from MODEL; no training.")
@click.option(
    "--latency-table", "latency_tables", type=FILE, multiple=True, help="Measured before; repeatable."
)
@click.option("--budget", type=Duration(), help="Time for all training, such as 10m.")
@click.option(
    "--steps", type=click.IntRange(min=1), help="Optimiser steps of one training, instead of --budget."
)
@click.option(
    "--config", type=FILE, is_eager=True, expose_value=True, callback=_config, help="TOML of options."
)
@click.option("--save-config", type=FILE, help="Write the TOML that repeats this call.")
@click.option(
    "-o", "--output", type=FILE, default=Path("lstmopt-out"), show_default=True, help="Artifact folder."
)
@click.option("--fresh", is_flag=True, help="Forget what earlier calls left there.")
@click.option("--keep-intermediates", is_flag=True, help="Keep every stage's model.")
@click.option("--dry-run", is_flag=True, help="Check the input, show the plan, do nothing.")
@_json
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.pass_context
def optimize(ctx: click.Context, /, model: Path, **options: Any) -> None:
    """Optimises MODEL for a target and writes the artifact folder."""
    from lstmopt import pipeline
    from lstmopt.measure.table import LatencyTable
    from lstmopt.passes import BackOff
    from lstmopt.passes.back_off import SCALES

    if options["budget"] is not None and options["steps"] is not None:
        raise click.UsageError("--budget and --steps exclude each other")
    if options["trained"] is not None:
        _check_untrained(ctx)
    if not all(0 < scale <= LARGEST_SCALE for scale in options["scales"]):
        raise click.UsageError(f"--scale takes shares above 0, up to {LARGEST_SCALE:.0%}, such as 75%")
    if options["save_config"] is not None:
        _save_config(options["save_config"], ctx)
    call: dict[str, Any] = {
        name: options[name] for name in ("data", "val", "test", "task", "max_degradation", "seed", "trained")
    }
    call["target"] = _chosen(options["target"], options["shapes"], options["threads"])
    scales = tuple(sorted(options["scales"])) or SCALES
    call["back_off"] = BackOff(
        scales=scales,
        compression=options["compression"],
        keep_state_shape=options["keep_state_shape"],
    )
    call["latency_tables"] = tuple(LatencyTable.load(path) for path in options["latency_tables"])
    budget = pipeline.Budget(seconds=options["budget"], steps=options["steps"])
    if options["dry_run"]:
        plan = pipeline.plan(model, budget=budget, **call)
        _print(plan, options["as_json"])
        return
    with progress_shown() as progress:
        state = pipeline.optimize(
            model,
            output=options["output"],
            budget=budget,
            fresh=options["fresh"],
            keep_intermediates=options["keep_intermediates"],
            stateful=options["stateful"],
            command=shlex.join(["lstmopt", *sys.argv[1:]]),
            progress=progress,
            **call,
        )
    _print_report(state.output, options["as_json"])


def _check_untrained(ctx: click.Context) -> None:
    """Checks that nothing is asked of a training that there will not be."""
    given = [
        f"--{name}"
        for name, option in TRAINING.items()
        if ctx.get_parameter_source(option) is not click.core.ParameterSource.DEFAULT
    ]
    if given:
        raise click.UsageError(f"{given[0]} is for training, and --trained leaves that out")


def _print_report(output: Path, as_json: bool) -> None:
    """Prints the artifact's result table, or its report.json."""
    if as_json:
        click.echo((output / "report.json").read_text(encoding="utf-8"))
        return
    from lstmopt.report.schema import Manifest, Report
    from lstmopt.report.text import result_table, state_lines

    _rich(result_table(Report.load(output / "report.json")))
    for line in state_lines(Manifest.load(output / "manifest.json")):
        click.echo(line)
    click.echo(f"\n{output / 'report.html'}")


def _print(value: Any, as_json: bool) -> None:
    """Prints a pydantic model as JSON or as its table."""
    if as_json:
        click.echo(value.model_dump_json(indent=2))
    else:
        _rich(value.render())


def _rich(renderable: Any) -> None:
    from rich.console import Console

    console = Console()
    # A pipe or a file gets the whole table, not one cut at 80 columns.
    Console(width=None if console.is_terminal else 160).print(renderable)


@cli.command(short_help="What each option would buy here, measured; no training.")
@click.argument("model", type=FILE)
@_target
@_shape
@_threads
@click.option("--data", help="As of optimize: degradation is measured on its last tenth.")
@_json
def advise(
    model: Path,
    target: str,
    shapes: Shapes,
    threads: int | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Measures what each option would buy for MODEL on this machine; about a minute, no training."""
    from lstmopt.passes.advise import advise as run

    with progress_shown() as progress:
        advice = run(
            model,
            target=_chosen(target, shapes),
            threads=threads,
            options=_said(target, shapes),
            data=data,
            progress=progress,
        )
    _print(advice, as_json)


@cli.command(short_help="Layers, what is tied to their units, states.")
@click.argument("model", type=FILE)
@_json
def inspect(model: Path, as_json: bool) -> None:
    """Shows MODEL's recurrent layers, what is tied to their hidden units, and its states."""
    from lstmopt.rnn.files import load_model
    from lstmopt.rnn.inspection import inspect_model

    _print(inspect_model(load_model(model), str(model)), as_json)


@cli.command(short_help="MODEL for one value or shape of an input.")
@click.argument("model", type=FILE)
@click.argument("values", type=InputValue(), metavar="[INPUT=VALUE]...", nargs=-1)
@_shape
@click.option("-o", "--output", type=FILE, required=True, help="ONNX file to write.")
def fix(model: Path, values: tuple[tuple[str, float], ...], shapes: Shapes, output: Path) -> None:
    """Writes MODEL for one value of an input, such as sr=16000, or for calls of one shape.

    That input is gone, and so are the branches that value or shape decides: layers in them can be
    optimised then.
    """
    from lstmopt.passes.fix import fix_inputs
    from lstmopt.rnn.files import load_model, save_model

    if not values and not shapes:
        raise click.UsageError("name a value, such as sr=16000, or a --shape")
    if output.exists():
        raise LstmoptError(str(output), "exists", "name another file")
    save_model(fix_inputs(load_model(model), dict(values), dict(shapes), str(model)), output)
    click.echo(str(output))


@cli.command(short_help="Latency against hidden size; hysteresis points.")
@click.argument("model", type=FILE, required=False)
@_target
@_threads
@click.option(
    "--hidden-size", type=click.IntRange(min=1), help="Of a bare layer; measured to a tenth above it."
)
@click.option(
    "--cell",
    type=click.Choice(["LSTM", "GRU"], case_sensitive=False),
    default="LSTM",
    show_default=True,
    help="Of a bare layer; a GRU resets after the product, as torch's does.",
)
@click.option(
    "--input-size", type=click.IntRange(min=1), help="Its input size; tied to the hidden size if not given."
)
@click.option(
    "--step", type=click.IntRange(min=1), default=8, show_default=True, help="Grid of hidden sizes."
)
@click.option(
    "--pattern",
    "patterns",
    multiple=True,
    help="Of sparse layers, such as bank64:step4; the target's if not given; repeatable.",
)
@click.option(
    "--density",
    "densities",
    type=Percent(),
    multiple=True,
    help="Share of weights that sparse layers keep, such as 6.25%; 12.5% if not given; repeatable.",
)
@click.option(
    "-o", "--output", type=FILE, default=Path("latency"), show_default=True, help="Folder of tables, PNGs."
)
@_json
def probe(
    model: Path | None,
    target: str,
    threads: int | None,
    hidden_size: int | None,
    cell: str,
    input_size: int | None,
    step: int,
    patterns: tuple[str, ...],
    densities: tuple[float, ...],
    output: Path,
    as_json: bool,
) -> None:
    """Measures latency against hidden size for MODEL's layers, or for a bare one, and finds the points.

    In every precision of the target; its sparse ones, such as sparse-i8, with random masks of each pattern
    that the format is made for, at each density.
    """
    from lstmopt.passes.probe_folder import probe_to_folder

    if not all(0 < density <= 1 for density in densities):
        raise click.UsageError("--density takes shares above 0, up to 100%, such as 6.25%")
    with progress_shown() as progress:
        chosen = _chosen(target, (), threads)
        result = probe_to_folder(
            model, chosen, hidden_size, input_size, step, output, progress, patterns, densities, cell.upper()
        )
    _print(result, as_json)


@cli.command(short_help="Compares the latency of models and artifacts.")
@click.argument("models", type=FILE, nargs=-1, required=True)
@_target
@_shape
@_threads
@click.option("--rounds", type=click.IntRange(min=5), default=30, show_default=True, help="Rounds of blocks.")
@click.option("--cold", is_flag=True, help="Empty the caches before each call.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def bench(
    models: tuple[Path, ...],
    target: str,
    shapes: Shapes,
    threads: int | None,
    rounds: int,
    cold: bool,
    as_json: bool,
) -> None:
    """Compares the latency of MODELS (ONNX files, OpenVINO IRs or artifact folders), interleaved."""
    from lstmopt.passes.bench import bench as run

    with progress_shown() as progress:
        chosen = _chosen(target, shapes, threads)
        result = run(models, target=chosen, rounds=rounds, cold=cold, progress=progress)
    _print(result, as_json)


@cli.command(short_help="Checks an artifact; that it is not slower.")
@click.argument("artifact", type=FILE)
@click.option("--baseline", type=FILE, help="An earlier artifact to compare the speed with.")
@click.option("--max-slowdown", type=Percent(), default="5%", show_default=True, help="Over the baseline.")
@_json
def verify(artifact: Path, baseline: Path | None, max_slowdown: float, as_json: bool) -> None:
    """Checks an ARTIFACT's files, outputs and contract; with --baseline, that it is not slower."""
    from lstmopt.passes.verify import verify_artifact

    with progress_shown() as progress:
        result = verify_artifact(artifact, baseline=baseline, max_slowdown=max_slowdown, progress=progress)
    _print(result, as_json)
    if not result.passed:
        raise ContractError(str(artifact), result.fault, "see the table above")


@cli.command(short_help="Converts MODEL for a runtime; no training.")
@click.argument("model", type=FILE)
@click.option("--runtime", type=click.Choice(["openvino", "onnxruntime", "tensorrt", "cudnn"]), required=True)
@click.option(
    "--format",
    "precision",
    type=click.Choice(["auto", "f32", "bf16", "f16", "int8", "i16", "i8", *SPARSE_PRECISIONS]),
    default="auto",
    show_default=True,
    help="auto: the fastest that keeps the outputs within 1%. sparse-..., i16 and i8 skip zeros in LSTMs and "
    "products, packed as measuring says.",
)
@_target
@_shape
@_threads
@click.option("--static", is_flag=True, help="Fix the dynamic axes to the target's shape.")
@_stateful
@click.option("-o", "--output", type=FILE, required=True, help="Folder to write.")
@_json
def export(
    model: Path,
    runtime: str,
    precision: str,
    target: str,
    shapes: Shapes,
    threads: int | None,
    static: bool,
    stateful: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Writes MODEL in the form that a runtime executes; no training."""
    from lstmopt.passes.convert import export_model

    with progress_shown() as progress:
        result = export_model(
            model,
            runtime=runtime,
            precision=f"{SPARSE}{precision}" if precision in ("i16", "i8") else precision,
            target=_chosen(target, shapes, threads),
            static=static,
            stateful=stateful,
            output=output,
            progress=progress,
        )
    _print(result, as_json)


@cli.command(short_help="What works on this machine; what to install.")
@_json
def doctor(as_json: bool) -> None:
    """Shows which runtimes, instruction sets and devices are usable, and what to install for the rest."""
    from lstmopt.passes.doctor import doctor as run

    _print(run(), as_json)


@cli.command("build-ops", short_help="Builds the native ops for another OpenVINO.")
@click.option(
    "-o", "--output", type=FILE, help="Folder for the libraries; by default where lstmopt looks for them."
)
@click.option(
    "--openvino-dir", type=FILE, help="Folder of OpenVINOConfig.cmake; by default the installed package's."
)
def build_ops(output: Path | None, openvino_dir: Path | None) -> None:
    """Builds the native ops for sparse LSTMs from their sources, for the OpenVINO that is installed."""
    from lstmopt.runtimes.ops.build import build_ops as run

    for library in run(output, openvino_dir):
        click.echo(str(library))


@cli.command(short_help="Optimises the reference model in under 10 minutes.")
@click.option(
    "-o", "--output", type=FILE, default=Path("lstmopt-demo"), show_default=True, help="Artifact folder."
)
@click.option("--fresh", is_flag=True, help="Forget what earlier calls left there.")
@_json
def demo(output: Path, fresh: bool, as_json: bool) -> None:
    """Optimises the reference character language model in under 10 minutes."""
    from lstmopt.passes.demo import demo_call
    from lstmopt.pipeline import Budget
    from lstmopt.pipeline import optimize as run

    call = demo_call()
    for note in call.get("notes", ()):
        click.echo(note, err=True)
    with progress_shown() as progress:
        state = run(
            output=output,
            fresh=fresh,
            progress=progress,
            command="lstmopt demo",
            budget=Budget(seconds=call.pop("seconds")),
            **call,
        )
    _print_report(state.output, as_json)


def _terminate(number: int, frame: Any) -> NoReturn:
    # `timeout` sends it twice, and the second one would interrupt the way out.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    """Runs the command line; every fault of the user is one line on stderr.

    Exits with 0 when done and within the contract, 1 when the contract or a speed goal is not met,
    2 on bad input or usage.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except LstmoptError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message().replace("\n", " "), 2)
    except (click.Abort, KeyboardInterrupt):
        goes_on = RESUMED & {*sys.argv[1:2]}
        _fail(
            "interrupted: nothing is lost; the same command goes on where it stopped"
            if goes_on
            else "interrupted: not finished; make the same call again",
            2,
        )
    except MemoryError:
        _fail("out of memory: the model or the data is too large for this machine; use a smaller batch", 2)
    except OSError as error:
        where = error.filename or "the system"
        _fail(f"{where}: {error.strerror or error}; check the path, its rights and the free space", 2)


def _fail(line: str, code: int) -> NoReturn:
    click.echo(f"error: {line}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
