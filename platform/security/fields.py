"""A text column whose content is sealed in the database and plain in Python."""

from __future__ import annotations

from typing import Any

from django.db import models

from security.sealing import seal, unseal


class SealedTextField(models.BinaryField):  # type: ignore[type-arg]
    """Text sealed for its own table and column: a value copied into another column can't be opened."""

    description = "Text, encrypted at rest"

    def _purpose(self) -> str:
        return f"{self.model._meta.label_lower}.{self.attname}"

    def from_db_value(self, value: Any, *_: Any) -> str | None:
        return None if value is None else unseal(bytes(value), self._purpose()).decode()

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        sealed = None if value is None else seal(str(value).encode(), self._purpose())
        return super().get_db_prep_value(sealed, connection, prepared)

    def to_python(self, value: Any) -> Any:
        return value

    def value_to_string(self, obj: models.Model) -> str:
        raise TypeError(f"{self._purpose()} of {obj.pk} is a secret and is never serialised.")
