"""How a grammar looks: one line in a terminal, its rules drawn in a notebook."""

from __future__ import annotations

import html as _html
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .grammar import Grammar
    from .rules import RuleTable

__all__ = ["html", "summary"]

_MAX_RULES = 12  # per parent; the rest is counted
_MAX_PARENTS = 16
_MAX_LEVELS = 3


def _title(grammar: Grammar) -> str:
    parameters = ", ".join(f"{k}={v}" for k, v in grammar.spec.items() if k != "family")
    family = grammar.spec.get("family", "tensor")
    return f"Grammar.{'from_tensor' if family == 'tensor' else family}({parameters or '…' * (family == 'tensor')})"


def summary(grammar: Grammar) -> str:
    """One line: how it was made and how large it is."""
    parts = [f"{grammar.vocab_size} symbols"]
    if grammar.n_classes != grammar.vocab_size:
        parts.append(f"{grammar.n_classes} classes")
    parts.append(f"arity {grammar.arity}")
    if grammar.is_shared:
        parts.append(f"{grammar.n_rules} rules")
    else:
        first, last = grammar.tables[0].n_rules, grammar.tables[-1].n_rules
        parts.append(f"{len(grammar.tables)} levels of {first} to {last} rules")
    parts.append("unambiguous" if grammar.is_unambiguous else "ambiguous")
    return f"{_title(grammar)}: {', '.join(parts)}"


def _short(p: float) -> str:
    return f"{p:.3f}" if p >= 0.0005 else "&lt;.001"


def _table_html(table: RuleTable) -> str:
    rows = []
    for a in range(min(table.n_parents, _MAX_PARENTS)):
        begin, end = int(table.first[a]), int(table.first[a + 1])
        order = begin + np.argsort(-table.probability[begin:end], kind="stable")
        cells = []
        for rule in order[:_MAX_RULES]:
            p = float(table.probability[rule])
            children = " ".join(str(int(b)) for b in table.children[rule])
            shade = f"rgba(0, 114, 178, {0.08 + 0.72 * p:.2f})"
            cells.append(
                f'<td style="background:{shade};text-align:center;padding:2px 8px" '
                f'title="{a} → {children}: {p:.6g}"><b>{children}</b><br><small>{_short(p)}</small></td>'
            )
        if end - begin > _MAX_RULES:
            cells.append(f"<td>+{end - begin - _MAX_RULES} more</td>")
        rows.append(f'<tr><th style="padding:2px 8px">{a} →</th>{"".join(cells)}</tr>')
    if table.n_parents > _MAX_PARENTS:
        rows.append(f"<tr><td>+{table.n_parents - _MAX_PARENTS} more parents</td></tr>")
    return f'<table style="border-collapse:separate;border-spacing:2px">{"".join(rows)}</table>'


def html(grammar: Grammar) -> str:
    """The rules by parent, most likely first, shaded by probability."""
    out = [f"<div><p><code>{_html.escape(summary(grammar))}</code></p>"]
    for level, table in enumerate(grammar.tables[:_MAX_LEVELS]):
        if not grammar.is_shared:
            out.append(f"<p>level {level} → {level + 1}</p>")
        out.append(_table_html(table))
    if len(grammar.tables) > _MAX_LEVELS:
        out.append(f"<p>+{len(grammar.tables) - _MAX_LEVELS} more levels</p>")
    return "".join(out) + "</div>"
