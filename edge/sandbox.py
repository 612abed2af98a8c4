"""A Jinja environment for templates that cannot be trusted, because they come inside model files.

Jinja's own sandbox closes the attributes that lead from a value into Python, but it does not bound
the work. Here every value that a template makes or prints goes through a `Meter`, which charges its
characters and items and looks at the clock. Operations whose result can be much larger than their
operands are charged before they run. Filters and string methods that no chat template needs are
left out. So one rendering makes at most as much as its `Meter` allows, and ends about
`MAX_RENDER_S` CPU seconds after it began, plus one operation: a single operation on values of the
allowed size (a search, a sort) is not interrupted.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS, do_indent, do_join, do_replace, do_trim
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SOURCE_CHARS = 1 << 18  # the longest templates of public models have some 20,000
MAX_INPUT_CHARS = 1 << 26
BASE_CHARS = 1 << 24  # that each rendering may make
COPIES = 64  # and this many times the size of its input
MAX_RENDER_S = 30.0
MAX_INT_BITS = 2048
MAX_ARGUMENT_CHARS = 1024  # of an argument that makes a string method quadratic

PLAIN_FORMAT = re.compile(r"%(0?\d{1,2})?(\.\d{1,2})?[%sdf]")
METER = "the meter"  # of a filter and a variable; because of the space no template can name them

SAFE_FILTERS = """
    abs capitalize count d default dictsort e escape first float groupby int items last length list
    lower map max min reject rejectattr reverse safe select selectattr sort string title unique
    upper
""".split()
SCANNING = frozenset(["strip", "lstrip", "rstrip", "rfind", "rsplit", "rpartition"])
SAFE_STR_METHODS = SCANNING | frozenset(
    """
    capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower
    isnumeric isspace istitle isupper join lower partition removeprefix removesuffix replace split
    splitlines startswith swapcase title upper
    """.split()
)


def weigh(value: object, limit: int) -> int:
    """Return the number of characters and items in `value`, containers included; counting stops
    above `limit`."""
    weight, todo = 0, [value]
    while todo and weight + len(todo) <= limit:
        item = todo.pop()
        weight += 1
        if isinstance(item, str):
            weight += len(item)
        elif isinstance(item, int) and item.bit_length() > MAX_INT_BITS:
            raise SecurityError(f"a number of more than {MAX_INT_BITS} bits")
        elif isinstance(item, Mapping):
            for pair in cast(Mapping[object, object], item).items():
                todo.extend(pair)
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo.extend(cast(Iterable[object], item))
    return weight + len(todo)


class Meter:
    """What one rendering may still make. Calling it with a value charges and returns the value."""

    def __init__(self, given: object) -> None:
        given_chars = weigh(given, MAX_INPUT_CHARS)
        if given_chars > MAX_INPUT_CHARS:
            raise SecurityError(f"it was given more than {MAX_INPUT_CHARS} characters")
        self.max_chars = BASE_CHARS + COPIES * given_chars
        self._left = self.max_chars
        self._deadline_s = time.thread_time() + MAX_RENDER_S

    def __call__(self, value: Any) -> Any:
        plain = isinstance(value, str)
        self.charge(1 + len(value) if plain else weigh(value, self._left))
        return value

    def charge(self, chars: int) -> None:
        self._left -= chars
        if self._left < 0:
            raise SecurityError(f"it makes more than {self.max_chars} characters")
        if time.thread_time() > self._deadline_s:
            raise SecurityError(f"it runs for more than {MAX_RENDER_S:g} s")


def meter_of(context: Context) -> Meter:
    return cast(Meter, context[METER])


@pass_context  # so that Jinja does not compute constant expressions while it compiles
def _metered(context: Context, value: Any) -> Any:
    return meter_of(context)(value)


@pass_context
def _join(context: Context, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    items = list(value)
    meter_of(context).charge(len(items) * len(str(d)))
    return cast(str, do_join(context.eval_ctx, items, d, attribute))


@pass_context
def _replace(context: Context, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    meter_of(context).charge(str(s).count(str(old)) * len(str(new)))
    return do_replace(context.eval_ctx, str(s), old, new, count)


@pass_context
def _indent(
    context: Context, s: str, width: int | str = 4, first: bool = False, blank: bool = False
) -> str:
    indent_chars = width if isinstance(width, int) else len(width)
    meter_of(context).charge((s.count("\n") + 1) * indent_chars)
    return do_indent(s, width, first, blank)


def _trim(value: str, chars: str | None = None) -> str:
    _refuse_long(chars)
    return do_trim(value, chars)


def _refuse_long(*args: object) -> None:
    if weigh(args, MAX_ARGUMENT_CHARS) > MAX_ARGUMENT_CHARS:
        raise SecurityError(f"an argument of more than {MAX_ARGUMENT_CHARS} characters")


def _product_weight(left: Any, right: Any) -> int:
    """Return what `left * right` weighs if one of them repeats the other, else 1."""
    times, repeated = (left, right) if isinstance(left, int) else (right, left)
    if not isinstance(times, int) or isinstance(repeated, (int, float)):
        return 1
    return max(times, 0) * weigh(repeated, MAX_INPUT_CHARS)


class _Namespace(Namespace):
    """A namespace that does not print its content: nested namespaces would print 2**n times as
    much."""

    def __repr__(self) -> str:
        return "<namespace>"


class Generation(Extension):
    """`{% generation %}..{% endgeneration %}` marks the model's own words for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _meter_node(node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, METER, [], [], None, None, lineno=node.lineno)


class _PutMeters(NodeTransformer):
    """Puts the meter around each expression that makes a value, and into the body of each loop."""

    def _visit_maker(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        stored = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if stored else _meter_node(node)

    visit_Add = visit_Mul = visit_Mod = visit_Call = visit_Filter = _visit_maker
    visit_List = visit_Tuple = visit_Dict = _visit_maker

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _meter_node(node) if isinstance(node.arg, nodes.Slice) else node

    def _visit_pieces(self, node: nodes.Concat | nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_meter_node(piece) for piece in node.nodes]
        return node

    visit_Concat = visit_Output = _visit_pieces

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_meter_node(nodes.Const(""))], lineno=node.lineno))
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        call = node.call
        self.generic_visit(node)
        node.call = call  # Jinja needs the bare call here; its output is metered piece by piece
        return node


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment. `compiled` makes a template of a source; rendering it needs a `Meter`."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(
        self, filters: Mapping[str, Callable[..., Any]], functions: Mapping[str, Callable[..., Any]]
    ) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[loopcontrols, Generation],
        )
        own = {"join": _join, "replace": _replace, "indent": _indent, "trim": _trim}
        known = {name: FILTERS[name] for name in SAFE_FILTERS}
        self.filters = known | own | dict(filters) | {METER: _metered}
        kept = {"range": self.globals["range"], "dict": dict, "namespace": _Namespace}
        self.globals = kept | dict(functions)

    def compiled(self, source: str) -> Any:
        if len(source) > MAX_SOURCE_CHARS:
            raise SecurityError(f"its source has more than {MAX_SOURCE_CHARS} characters")
        tree = _PutMeters().visit(self.parse(source))
        tree.set_environment(self)
        return self.from_string(tree)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in SAFE_STR_METHODS
        if isinstance(obj, (bytes, int, float)):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Offer no safe version of `str.format`, because its widths are unbounded."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(text, str) and name == "join":
            return _join(context, args[0], text)
        if isinstance(text, str) and name == "replace":
            return _replace(context, text, *args)
        if isinstance(text, str) and name in SCANNING:
            _refuse_long(*args)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("it uses **")
        if operator == "%" and isinstance(left, str) and "%" in PLAIN_FORMAT.sub("", left):
            raise SecurityError("a format other than %s, %d, %f with at most two digits of width")
        if operator == "*":
            meter_of(context).charge(_product_weight(left, right))
        return super().call_binop(context, operator, left, right)

    def call_filter(  # what `map` calls for each item
        self,
        name: str,
        value: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        context: Context | None = None,
        eval_ctx: nodes.EvalContext | None = None,
    ) -> Any:
        made = super().call_filter(name, value, args, kwargs, context, eval_ctx)
        return made if context is None else meter_of(context)(made)

    def call_test(  # what `select` and `reject` call for each item
        self,
        name: str,
        value: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        context: Context | None = None,
        eval_ctx: nodes.EvalContext | None = None,
    ) -> Any:
        if context is not None:
            meter_of(context).charge(1)
        return super().call_test(name, value, args, kwargs, context, eval_ctx)
