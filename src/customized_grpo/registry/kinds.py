"""The kinds of plug-ins, and the calls that functions of some kinds have to answer."""

from collections.abc import Mapping
from typing import Literal

from customized_grpo.registry.signature import Call

Kind = Literal[
    "policies",
    "rewards",
    "metrics",
    "datasets",
    "importers",
    "aggregators",
    "time_weights",
    "dynamics",
    "plans",
    "objectives",
]

CALLS: Mapping[Kind, Call] = {
    "aggregators": Call(("a", "w"), optional=("raw",)),
    "time_weights": Call(("num_steps",)),
    "dynamics": Call(("velocity", "x", "sigma", "sigma_next"), ("sigma_max",)),
    "rewards": Call(("example", "images")),
}
