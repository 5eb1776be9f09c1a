"""Who makes a call: told by its token, else by the certificate that its client has shown.

Without tokens and without an authority of clients' certificates nobody is asked, and callers are
believed what they say. Otherwise whoever is not known is told so in the same words, whatever it was
that is missing, wrong or over.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from engine.rights import ANYTHING, Rights
from engine.tiers import Tiers
from server import errors
from server.identity import tokens
from server.identity.files import NONE, Files
from server.identity.tokens import Tokens

ANY_CERTIFICATE = "*"
MOST_TOLD = 5  # tenants, in a note
# What gRPC calls the names in a verified certificate, and how the operator's file writes each.
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:")
_COMMON_NAME, _URI, _DNS, _PEM = "x509_common_name", "peer_uri", "peer_dns", "x509_pem_cert"

Metadata = Iterable[tuple[str, str]]
Shown = Mapping[str, Iterable[bytes]]  # gRPC's "auth context" of a connection


class Identity(NamedTuple):
    """Who makes a call. `tenant` is on whose behalf it is made unless it names another, which it
    may where it `speaks_for_others`; "" is the nameless tenant.
    """

    tenant: str
    speaks_for_others: bool = False
    is_operator: bool = False


ANYBODY = Identity("", speaks_for_others=True)  # where nobody is asked
OPERATOR = Identity("", speaks_for_others=True, is_operator=True)


class Identities:
    """Tells who calls, by what `files` say and by the rights of tenants that hold now."""

    def __init__(self, files: Files = NONE, tiers: Callable[[], Tiers] = Tiers) -> None:
        self._tiers = tiers
        self._of_certificates = Certificates(Tiers())
        self.take(files)

    def take(self, files: Files) -> None:
        """Has what other files say hold from now on."""
        self.files = files
        self._tokens = None if files.tokens is None else Tokens(files.tokens)

    @property
    def are_asked(self) -> bool:
        """Returns whether callers must say who they are."""
        return self._tokens is not None or self._sees_certificates

    @property
    def has_operator(self) -> bool:
        """Returns whether somebody could show that he is the operator."""
        of_tenants = any(each.admin for each in self._tiers().rights.values())
        return self.files.admin is not None or (self._tokens is not None and of_tenants)

    def identify(self, metadata: Metadata, shown: Callable[[], Shown]) -> Identity:
        """Returns who makes a call with that metadata on a connection that has `shown` so much.
        Raises CallError, UNAUTHENTICATED.
        """
        if not self.are_asked:
            return ANYBODY
        if self._tokens is not None or self.files.admin is not None:
            token = tokens.shown(value for key, value in metadata if key == tokens.KEY)
            if token is not None:
                return self._bearer(token)
        if self._sees_certificates:
            tenant = self._certificates.tenant_of(shown())
            if tenant is not None:
                return self._identity(tenant)
        raise errors.unauthenticated()

    def is_operator(self, authorization: Iterable[str]) -> bool:
        """Returns whether the operator shows himself by a header `authorization`; False where there
        is none, or nobody could. Raises CallError, UNAUTHENTICATED, for one that is not his.
        """
        token = tokens.shown(authorization)
        if token is None or not self.has_operator:
            return False
        try:
            is_operator = self._bearer(token).is_operator
        except errors.CallError:
            is_operator = False
        if not is_operator:
            raise errors.wrong_token()
        return True

    def _bearer(self, token: str) -> Identity:
        digest = tokens.digest_of(token.encode())
        if self.files.admin is not None and hmac.compare_digest(digest, self.files.admin):
            return OPERATOR
        tenant = None if self._tokens is None else self._tokens.tenant_of(token, time.time())
        if tenant is None:
            raise errors.unauthenticated()
        return self._identity(tenant)

    def _identity(self, tenant: str) -> Identity:
        rights = self._tiers().rights_of(tenant)
        return Identity(tenant, rights.speaks_for_others or rights.admin, rights.admin)

    @property
    def _sees_certificates(self) -> bool:
        return self.files.tls is not None and self.files.tls.client_ca is not None

    @property
    def _certificates(self) -> Certificates:
        tiers = self._tiers()
        if self._of_certificates.tiers is not tiers:
            self._of_certificates = Certificates(tiers)
        return self._of_certificates


def unlimited(files: Files, tiers: Tiers) -> str:
    """Returns what the operator is to be told of tenants that tokens name and `tiers` do not, where
    others may have less than they: one that is misspelt, or has lost its table, may have all. "" is
    nothing.
    """
    rights = tiers.rights
    if "" in rights or not any(_is_limited(each) for each in rights.values()):
        return ""
    unnamed = sorted({each.tenant for each in files.tokens or ()} - rights.keys())
    if not unnamed:
        return ""
    told = ", ".join(unnamed[:MOST_TOLD])
    if len(unnamed) > MOST_TOLD:
        told += f" and {len(unnamed) - MOST_TOLD} more"
    return (
        f"tokens name tenants that have no table, and so may have any tier and importance: {told};"
        " [tenants.other] says what such tenants may"
    )


def _is_limited(rights: Rights) -> bool:
    own = replace(rights, certificates=(), speaks_for_others=False, admin=False)
    return own != ANYTHING


class Certificates:
    """Whose clients' certificates are: by a URI in them, a DNS name or `CN=NAME`, the first of
    these that is known; of beginnings that fit the longest. `*` alone is whose all the others are.
    """

    def __init__(self, tiers: Tiers) -> None:
        self.tiers = tiers
        stated = {
            each: name for name, rights in tiers.rights.items() for each in rights.certificates
        }
        self._any = stated.pop(ANY_CERTIFICATE, None)
        beginnings = {each[:-1]: name for each, name in stated.items() if each.endswith("*")}
        self._beginnings = sorted(beginnings.items(), key=lambda each: -len(each[0]))
        self._whole = {each: name for each, name in stated.items() if not each.endswith("*")}

    def tenant_of(self, shown: Shown) -> str | None:
        """Returns whose the certificate is that a client has shown; None: nobody's."""
        if _PEM not in shown:
            return None
        for name in _names(shown):
            if name in self._whole:
                return self._whole[name]
            for beginning, tenant in self._beginnings:
                if name.startswith(beginning):
                    return tenant
        return self._any


def _names(shown: Shown) -> list[str]:
    """Returns the names in a certificate as the operator's file writes them, and none that could be
    taken for one of another kind.
    """
    return [
        *(_text(each) for each in shown.get(_URI, ()) if _SCHEME.match(each)),
        *(_text(each) for each in shown.get(_DNS, ()) if b":" not in each and b"=" not in each),
        *(f"CN={_text(each)}" for each in shown.get(_COMMON_NAME, ())),
    ]


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
