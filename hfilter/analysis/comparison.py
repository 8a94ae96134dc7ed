"""`Comparison`: a predictor's scores beside those of exact inference."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["QUANTILES", "Comparison"]

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass(frozen=True)
class Comparison:
    """A model's predictions beside those of BP_k, per scored token, in nats.

    Attributes
    ----------
    task : str
        ``"mlm"``, ``"root"``, ``"causal"`` or ``"ancestor"``.
    level : int or None
        Of the ancestor.
    inputs : str
        ``"own"``, ``"uniform"``, ``"without truth"``, or which other model drew the sequences.
        Uniformly random sequences have no truth either: every number that needs one is NaN.
    n_sequences, n_tokens : int
        Sequences, and scored tokens in them (one per sequence for the root).
    accuracy, cross_entropy, brier : float
        Of the model, on the given truth. The cross-entropy is infinite where it gave the truth
        probability zero; the Brier score is the mean of Σ_b (q_b - [b = truth])².
    exact_accuracy, exact_cross_entropy, exact_brier : dict of float, by k
        The same of BP_k.
    kl : dict of float, by k
        Mean KL(BP_k || model); infinite where the model excludes what BP_k does not.
    kl_quantiles : dict of dict, by k
        Quantiles of KL(BP_k || model) over tokens, by share, within 1 %.
    agreement : dict of float, by k
        Fraction of tokens where the model's choice is one that BP_k holds for most likely, ties
        within 1e-9 among them (they occur: rules may cancel).
    absolute_error : dict of float, by k
        Mean over tokens and symbols of |model - BP_k|.
    calibration_error : dict of float, by k
        ECE*: the same after averaging the signed error over the tokens of equal confidence, see
        `hfilter.analysis.calibration.Calibration`. Small beside `absolute_error`: wrong token by
        token, right on average.
    brier_excess : dict of float, by k
        Mean of Σ_b (model_b - BP_k,b)²: for k the filter level of the data, the expected Brier
        score above that of the exact posterior.
    grouping : dict of float, by k
        The part of `brier_excess` that remains within groups of tokens of equal confidence; the
        rest of it is miscalibration.
    accuracy_se, … : float or dict of float
        Standard error of each, over sequences (tokens of one sequence are correlated): the
        linearised error of the ratio of sums, a jackknife for `calibration_error` and `grouping`.
        NaN for an infinite mean or fewer than two sequences.
    undefined : dict of int, by k
        Scored tokens where BP_k does not exist, the evidence being impossible under k. They are
        left out of every number of that k, and nothing else is.
    undefined_model : int
        Scored tokens where the model's own row is NaN; left out of every number of the model.

    Notes
    -----
    Source: Garnier-Brun et al. 2024, arXiv 2408.15138, section 4 (KL along training).
    """

    task: str
    level: int | None
    inputs: str
    n_sequences: int
    n_tokens: int
    accuracy: float
    accuracy_se: float
    cross_entropy: float
    cross_entropy_se: float
    brier: float
    brier_se: float
    undefined_model: int
    exact_accuracy: dict[int, float]
    exact_accuracy_se: dict[int, float]
    exact_cross_entropy: dict[int, float]
    exact_cross_entropy_se: dict[int, float]
    exact_brier: dict[int, float]
    exact_brier_se: dict[int, float]
    kl: dict[int, float]
    kl_se: dict[int, float]
    kl_quantiles: dict[int, dict[float, float]]
    agreement: dict[int, float]
    agreement_se: dict[int, float]
    absolute_error: dict[int, float]
    absolute_error_se: dict[int, float]
    calibration_error: dict[int, float]
    calibration_error_se: dict[int, float]
    brier_excess: dict[int, float]
    brier_excess_se: dict[int, float]
    grouping: dict[int, float]
    grouping_se: dict[int, float]
    undefined: dict[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        scored = f"{self.n_tokens} tokens of " if self.task != "root" else ""
        unit = "tokens" if self.task != "root" else "sequences"
        name = self.task if self.level is None else f"{self.task} at level {self.level}"
        head = f"{name}: {scored}{self.n_sequences} sequences"
        if self.inputs != "own":
            head += f" ({self.inputs})"
        if self.inputs in ("uniform", "without truth"):
            head += "; no truth, so no accuracy and no cross-entropy"
        else:
            head += (
                f"; accuracy {self.accuracy:.4f} ± {self.accuracy_se:.4f}, "
                f"cross-entropy {self.cross_entropy:.4f} ± {self.cross_entropy_se:.4f}"
            )
        if self.undefined_model:
            head += f" (undefined for {self.undefined_model} {unit})"
        columns = "  k  KL(BP_k || model)  agreement  |model - BP_k|    ECE*"
        lines = [head, columns + "  BP_k accuracy  BP_k cross-entropy"]
        for k in self.kl:
            note = f"  undefined for {self.undefined[k]} {unit}" if self.undefined[k] else ""
            lines.append(
                f"{k:3d}  {self.kl[k]:8.4f} ± {self.kl_se[k]:.4f}  {self.agreement[k]:9.4f}"
                f"  {self.absolute_error[k]:14.4f}  {self.calibration_error[k]:6.4f}"
                f"  {self.exact_accuracy[k]:13.4f}  {self.exact_cross_entropy[k]:18.4f}{note}"
            )
        return "\n".join(lines)
