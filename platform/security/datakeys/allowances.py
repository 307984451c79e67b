"""How much each caller may ask for: a bucket in PostgreSQL, because backups go on while Redis is away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from django.db import connection
from django.db.models.functions import Now

from security.datakeys.errors import TooMany
from security.models import Allowance

# Filled up to now by the database's clock, then the amount taken, in one statement: nobody gets in between.
FILLED = 'least(%(burst)s, bucket."left" + %(rate)s * extract(epoch FROM clock_timestamp() - bucket.at))'
TAKE = f"""
INSERT INTO security_allowance AS bucket (name, "left", at)
VALUES (%(name)s, %(burst)s - %(amount)s, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET "left" = {FILLED} - %(amount)s, at = clock_timestamp()
WHERE {FILLED} >= %(amount)s
RETURNING "left"
"""  # noqa: S608 (two constants of this file)


@dataclass(frozen=True)
class Bucket:
    """`burst` at once, and then `rate` a second."""

    name: str
    burst: float
    rate: float

    def take(self, caller: str, amount: int = 1) -> None:
        """Take this much, or raise `TooMany`. What is refused is not counted, so nobody is shut out for good."""
        values: dict[str, str | float] = {
            "name": f"{self.name}:{caller}",
            "burst": self.burst,
            "rate": self.rate,
            "amount": amount,
        }
        with connection.cursor() as cursor:
            cursor.execute(TAKE, values)
            if cursor.fetchone() is None:
                raise TooMany(max(1, math.ceil(amount / self.rate)))


def forget_old() -> int:
    """Remove buckets that nobody took from for so long that they are full again; return how many."""
    return Allowance.objects.filter(at__lt=Now() - timedelta(days=2)).delete()[0]


# A first backup of a big server is some 100,000 objects in an hour or two. A loop gets two rows a second in the end.
FRESH = (Bucket("fresh", 1000, 50), Bucket("fresh-long", 200_000, 2))
# A restore is measured in minutes, and opening a key leaves nothing behind.
UNWRAP = (Bucket("unwrap", 2000, 100),)
PUBLISH = (Bucket("publish", 60, 1),)
# Each key once, and once more where a place failed: asked for again and again, they would fill the places.
PUBLISHED = (Bucket("published", 400_000, 4),)
