"""The two releases of Synapse that the real node runs: a server is made with the older and upgraded to the newest."""

from __future__ import annotations

from tenants.releases import RELEASES

NEW, OLD = RELEASES[0], RELEASES[2]
VERSIONS = (OLD.version, NEW.version)
