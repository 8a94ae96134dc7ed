"""hfilter: the exactly solvable laboratory for how neural networks learn hierarchical data.

`Grammar` draws or holds production rules; `TreeModel` grows trees from them at a depth and a filter
level, samples sequences, and answers exactly what generated them. `hfilter.learn` trains encoders on
its sequences, `hfilter.analysis` holds any model's probabilities against the exact ones, and
`hfilter.experiments` is what the command ``hfilter demo`` runs. `backends()` says what serves.

In docstrings HF is Garnier-Brun, Mézard, Moscato and Saglietti, *How transformers learn structured
data: insights from hierarchical filtering* (arXiv 2408.15138); BG is Garnier-Brun, Biggio, Beltrame,
Mézard and Saglietti, *Biased generalization in diffusion models* (arXiv 2603.03469); RHM is Cagnetta
et al., the random hierarchy model (arXiv 2307.02129).
"""

from __future__ import annotations

from . import errors
from .backend import BackendInfo, backends
from .exact import Posterior, Sample, TreeModel
from .grammar import Grammar
from .provenance import provenance
from .tree import STREAM_VERSION
from .version import __version__

__all__ = [
    "STREAM_VERSION",
    "BackendInfo",
    "Grammar",
    "Posterior",
    "Sample",
    "TreeModel",
    "__version__",
    "backends",
    "errors",
    "provenance",
]
