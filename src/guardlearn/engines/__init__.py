"""Where fan-out work runs: generation and guards, in threads of this process or on a Ray cluster.

An engine hands out futures; whoever drives it owns ℛ and stores each result once, in its own thread. The local engine
is the default, Ray stands beside it through the same protocol (`engines.protocol`).
"""

from guardlearn.engines.local import LocalEngine, judge
from guardlearn.engines.protocol import Engine, OnAnswer

__all__ = ["Engine", "LocalEngine", "OnAnswer", "judge"]
