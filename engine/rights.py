"""What a tenant may do, as the operator's file says in `[tenants.NAME]`.

Who is restricted to tiers takes its urgency from those alone: it states no targets of its own, a
preset or a tier that it may not have is not given to it, and the deadlines of its calls make no
target tighter. It is told so where it asks (`NotAllowed`); where it asks for nothing, it is served
within what it may have.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from engine.deciding.request import Importance


class Claim(Enum):
    """What a request states that its tenant may not."""

    TIER = "tier"
    TARGETS = "targets"
    IMPORTANCE = "importance"


class NotAllowed(Exception):
    """A request states what its tenant may not have."""

    def __init__(self, claim: Claim, message: str) -> None:
        super().__init__(message)
        self.claim = claim

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the claim, too, so that the error crosses to another process whole."""
        return NotAllowed, (self.claim, str(self))


@dataclass(frozen=True, slots=True)
class Rights:
    """What one tenant may do; by default all that anybody may, and nothing for others.

    `tiers` are those that it may have, any where there are none; the first of them is that of calls
    which name none, where the server's default is not among them. `importance` is the highest that
    it may claim. `explicit_targets` says whether it may state targets of its own, or have those of
    a preset that names no tier. Limits of 0 are none. `certificates` are the names in clients'
    certificates that stand for it; one that ends with `*` stands for all that begin so.
    """

    tiers: tuple[str, ...] = ()
    importance: Importance = Importance.HIGH
    explicit_targets: bool = True
    max_requests: int = 0  # that wait or run
    max_queued_tokens: int = 0  # of work that waits
    certificates: tuple[str, ...] = ()
    speaks_for_others: bool = False  # its calls may name any tenant, as a gateway's do
    admin: bool = False  # may explain every tenant's requests, and speaks for all

    def may_have(self, tier: str) -> bool:
        """Returns whether it may have the tier of that name, "" for targets that are no tier's."""
        if not tier:
            return self.explicit_targets
        return not self.tiers or tier in self.tiers

    def check_importance(self, stated: Importance | None) -> None:
        """Raises NotAllowed where a request states a higher importance than it may."""
        if stated is not None and stated > self.importance:
            most = self.importance.name.lower()
            raise NotAllowed(
                Claim.IMPORTANCE,
                f"{stated.name.lower()} is above what this tenant may claim: {most} at most",
            )

    def refuse(self, tier: str) -> NotAllowed:
        """Returns the error for a request that states what it may not have."""
        theirs = ", ".join(self.tiers)
        if tier:
            return NotAllowed(
                Claim.TIER, f"{tier!r} is no tier that this tenant may have: {theirs}"
            )
        rest = f"it may name a tier ({theirs})" if theirs else "it may name a tier"
        return NotAllowed(
            Claim.TARGETS, f"this tenant may state no targets of its own but best effort; {rest}"
        )


ANYTHING = Rights()
