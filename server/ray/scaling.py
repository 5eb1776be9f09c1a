"""How many replicas there are to be: by the seconds of work that wait, tier by tier, never by the
number of requests, of which one may be a thousand times another.
"""

from __future__ import annotations

import math
from typing import Any

from server.ray.loads import needed

PART = 0.5  # of a target within which what waits is to be done
MOST_DEMAND = 0.8  # seconds of work that arrive at a replica in a second


def decide(context: Any) -> tuple[int, dict[str, Any]]:
    """Returns how many replicas it takes now, as Ray's autoscaling policies do, from what each
    running replica said last. Ray waits for as long as it is told before it follows.
    """
    loads: dict[str, dict[str, float]] = {}
    running = set(context.running_replicas)
    for name, of_replicas in (context.raw_metrics or {}).items():
        for replica, series in of_replicas.items():
            if series and replica in running:
                loads.setdefault(str(replica), {})[name] = series[-1].value
    num_now = context.target_num_replicas
    if not loads:  # nobody has said anything yet
        return num_now, {}
    return max(1, math.ceil(needed(loads, num_now, PART, MOST_DEMAND))), {}
