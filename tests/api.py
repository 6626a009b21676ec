"""The public API on one page, from the docstrings.

    python -m tests.api

writes figures/api.md.
"""

import inspect
import re
import types
from pathlib import Path
from typing import Any

import sj_burst
from sj_burst import export, functional, training
from sj_burst.analysis import plot
from sj_burst.modules import encoding, pooling

PAGE = Path(__file__).resolve().parent.parent / "figures" / "api.md"
MODULES = (sj_burst, plot, training, export, pooling, encoding, functional)
# What torch, SpikingJelly and the converter call.
HOOKS = {"forward", "extra_repr", "supported_backends", "materialize_states", "multi_step_forward"}
HOOKS |= {"single_step_functional_forward", "multi_step_functional_forward", "reset"}
HOOKS |= {"validate", "before_trace", "after_trace", "calibrate", "replace", "finalize"}
HEAD = """# Public API

What `import sj_burst` offers, with the first sentence of each docstring; `help(name)` tells the rest:
formulas, shapes, units, errors, sources, and an example. Written by `python -m tests.api`.
"""


def sentence(thing: Any) -> str:
    """The first paragraph of a docstring, in Markdown."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?\.?([^`]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    return text.replace("``", "`")


def call(name: str, thing: Any) -> str:
    """Name and arguments, of which annotations and long defaults are left out."""
    try:
        given = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return name
    parts, star = [], False
    for p in given:
        if p.name in ("self", "cls"):
            continue
        star = star or p.kind is p.VAR_POSITIONAL
        if p.kind is p.KEYWORD_ONLY and not star:
            parts, star = [*parts, "*"], True
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        short = p.default is p.empty or not isinstance(p.default, str | int | float | None)
        default = "=…" if short and p.default is not p.empty else f"={p.default!r}"
        parts.append(f"{stars}{p.name}" + ("" if p.default is p.empty else default))
    return f"{name}({', '.join(parts)})"


def members(kind: type) -> str:
    """What a class adds of its own."""
    own = [n for n, v in vars(kind).items() if not n.startswith("_") and n not in HOOKS and described(v)]
    return f" Has {', '.join(f'`{n}`' for n in own)}." if own else ""


def described(value: Any) -> bool:
    return isinstance(value, types.FunctionType | property | classmethod | staticmethod)


def entries(module: types.ModuleType) -> list[str]:
    """A line for every public name."""
    lines = []
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            continue
        if not callable(thing):
            values = ", ".join(f"`{getattr(value, '__name__', value)}`" for value in thing)
            lines.append(f"- `{name}`: {values}.")
            continue
        more = members(thing) if inspect.isclass(thing) else ""
        lines.append(f"- `{call(name, thing)}`: {sentence(thing)}{more}")
    return lines


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for module in MODULES:
        about = "" if module is sj_burst else sentence(module) + "\n\n"
        parts.append(f"## {module.__name__}\n\n{about}" + "\n".join(entries(module)) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
