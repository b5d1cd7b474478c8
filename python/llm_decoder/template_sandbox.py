"""Compiling and running a chat template that a stranger wrote, with bounded time and memory.

Jinja's immutable sandbox keeps the template away from Python and from changing what it is given. Against loops and
bombs stands a budget of CPU time and of characters (template_budget.py): each turn of a loop and each operation pays
before it is done. Filters, tests, functions and methods are those that template_operations.py lists, with a price
each; all others are refused. What Jinja would compile to plain Python (`~`, comparisons, slices, lists and dicts)
becomes a call of template_operators.py here, and nothing is computed while compiling.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import jinja2.sandbox
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from llm_decoder import template_operations, template_operators
from llm_decoder.template_budget import ELEMENT_CHARS, MAX_OUTPUT_CHARS, Budget, TemplateLimitError, budget

__all__ = ["MAX_SOURCE_CHARS", "compile_template", "render"]

MAX_SOURCE_CHARS = 1 << 16


def compile_template(source: str) -> jinja2.Template:
    """The template, compiled. Raises jinja2.TemplateError for a syntax error, a statement that chat templates do not
    have, or too long a text."""
    if len(source) > MAX_SOURCE_CHARS:
        raise TemplateLimitError(f"need a template of at most {MAX_SOURCE_CHARS:,} characters, got {len(source):,}")
    try:
        return _environment().from_string(source)
    except jinja2.TemplateError:
        raise
    except (RecursionError, MemoryError):
        raise TemplateLimitError("the template is nested too deeply") from None
    except Exception as error:  # of Python's own compiler, which has the last word on Jinja's
        raise TemplateLimitError(f"{type(error).__name__}: {error!s:.200}") from error


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The text. Raises jinja2.TemplateError or whatever the template's own operations raise."""
    text = io.StringIO()
    n_chars = 0
    before = budget.set(Budget())
    try:
        for piece in template.generate(**variables):
            n_chars += len(piece)
            if n_chars > MAX_OUTPUT_CHARS:
                raise TemplateLimitError(f"the template wrote more than {MAX_OUTPUT_CHARS:,} characters")
            text.write(piece)
    finally:
        budget.reset(before)
    return text.getvalue()


class _Checked(NodeTransformer):
    """The template with its expressions and loops as calls of template_operators.OPERATORS."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _operation("<concatenated>", node, *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        self.generic_visit(node)
        others: list[nodes.Expr] = []
        for operand in node.ops:
            others += [nodes.Const(operand.op), operand.expr]
        return _operation("<compared>", node, node.expr, *others)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = [bound or nodes.Const(None) for bound in (node.arg.start, node.arg.stop, node.arg.step)]
        return _operation("<sliced>", node, node.node, *bounds)

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _operation("<list>", node, nodes.Const(None), *node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _operation("<tuple>", node, nodes.Const(None), *node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        keys_and_values = [part for pair in node.items for part in (pair.key, pair.value)]
        return _operation("<dict>", node, nodes.Const(None), *keys_and_values)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _operation("<loop over>", node, node.iter)
        if node.test is not None:
            node.test = _operation("<turn>", node, node.test)
        node.body.insert(0, nodes.ExprStmt(_operation("<turn>", node, nodes.Const(None)), lineno=node.lineno))
        return node


def _operation(name: str, place: nodes.Node, first: Any, *others: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(first, name, list(others), [], None, None, lineno=place.lineno)


# What reaches for other templates, or switches the escaping of HTML on.
_REFUSED_STATEMENTS = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from",
    nodes.Extends: "extends",
    nodes.Block: "block",
    nodes.ScopedEvalContextModifier: "autoescape",
}


def _refuse_statements(tree: nodes.Template) -> None:
    for statement in tree.find_all(tuple(_REFUSED_STATEMENTS)):
        word = _REFUSED_STATEMENTS[type(statement)]
        raise jinja2.TemplateSyntaxError(f"{word!r} is not available to chat templates", statement.lineno)


def _refuse_kept_loops(tree: nodes.Template) -> None:
    """`loop` can be asked for its fields; put into a list it would hold all that it goes through."""
    asked: set[int] = set()
    for asker in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Call, nodes.Test)):
        asked.update(id(child) for child in asker.iter_child_nodes(only=["node"]))
    for name in tree.find_all(nodes.Name):
        if name.name == "loop" and id(name) not in asked:
            raise jinja2.TemplateSyntaxError("'loop' can be asked for its fields only", name.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
    concat = staticmethod(template_operators.joined)  # type: ignore[assignment]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _refuse_statements(tree)
        _refuse_kept_loops(tree)
        _Checked().visit(tree)
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and template_operations.is_allowed_attribute(obj, attr)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        reason = f"{attribute!r} of a {type(obj).__name__} is not available to chat templates"
        return self.undefined(reason, name=attribute, obj=obj, exc=jinja2.sandbox.SecurityError)

    def wrap_str_format(self, value: Any) -> None:
        """str.format is a method like the others, see template_operations."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        budget.get().work(ELEMENT_CHARS)
        budget.get().size(argument)  # it is hashed
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        template_operators.check_arithmetic(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            return super(_Environment, __self).call(__context, *args, **kwargs)

        for name in ("_loop_vars", "_block_vars"):  # which Jinja adds for functions that want its context
            kwargs.pop(name, None)
        return template_operations.call(run, __obj, args, kwargs)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, _Generation],
        finalize=template_operators.written,
        optimized=False,  # it computes constant expressions while compiling
    )
    environment.filters = {**template_operations.FILTERS, **template_operators.OPERATORS}
    environment.tests = dict(template_operations.TESTS)
    environment.globals = dict(template_operations.FUNCTIONS)
    return environment


class _Generation(Extension):
    """`{% generation %}`, with which some templates mark the assistant's part, is read and has no effect."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
