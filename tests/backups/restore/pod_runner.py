"""The pod's program in a process of its own, with keys from a file: what the tests kill.

The wheel's PostgreSQL is built without TLS, so its temporary database speaks plainly here;
tests/backups/restore/test_temporary.py has the real thing with Debian's.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from backups.engine.recovering import temporary
from backups.engine.recovering.pod import Places, Pod
from backups.engine.recovering.told import Told
from tests.backups.keys import FileKeys

if __name__ == "__main__":
    folder, keys = Path(sys.argv[1]), FileKeys(Path(sys.argv[2]))
    temporary.tls = lambda *_: {}
    temporary.RULES = temporary.RULES.replace("hostssl", "host")
    places = Places(folder, host="127.0.0.1", port=int(sys.argv[3]), postgres=int(sys.argv[4]))
    Pod(places, Told("v1"), threading.Event(), settles=False, ask=keys.open).run()
