"""Two evaluations against each other, what accepted artifacts cost, and what ℛ shows beside an adapter's evidence.

Pure but for `promises`, which reads ℛ. `compare` gives what `evaluate` says of base and candidate, for any two models
that were measured on the same specifications in the same way; what cannot be paired is refused.
"""

from guardlearn.comparing.comparison import Bound, Compared, ModelFigures, PassAtK, compare
from guardlearn.comparing.costs import Cost, Payback, Saving, cost, pays_after, tasks_until_paid
from guardlearn.comparing.pairing import LeftOut, Measured, measured

__all__ = [
    "Bound",
    "Compared",
    "Cost",
    "LeftOut",
    "Measured",
    "ModelFigures",
    "PassAtK",
    "Payback",
    "Saving",
    "compare",
    "cost",
    "measured",
    "pays_after",
    "tasks_until_paid",
]
