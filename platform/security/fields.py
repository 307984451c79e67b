"""A text column whose content is sealed in the database and plain in Python.

A value is bound to its table, column, row and owner, so that one copied anywhere else can't be opened there. It is
sealed when its row is saved and opened when the attribute is first read: listing rows opens nothing.

What would leave a value behind that nobody can open is refused before anything is written: other binding attributes
without the value, and a value that was never loaded.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from django.core import checks
from django.db import models
from django.db.models.query_utils import DeferredAttribute
from django.db.models.signals import pre_save
from django.views.decorators.debug import sensitive_variables

from security.errors import KeyGone, UnsealError
from security.models import PLATFORM
from security.sealing import Place, seal_at, unseal_at


class Sealed(bytes):
    """A value as the database holds it."""

    def __repr__(self) -> str:
        return "<sealed>"

    __str__ = __repr__


class _Opening(DeferredAttribute):
    """Opens what came from the database when it is first read."""

    field: SealedTextField

    def __get__(self, instance: models.Model | None, cls: Any = None) -> Any:
        value = super().__get__(instance, cls)
        if instance is not None and isinstance(value, Sealed):
            value = instance.__dict__[self.field.attname] = self.field.open(value, instance)
        return value

    def __set__(self, instance: models.Model, value: Any) -> None:
        instance.__dict__[self.field.attname] = value


class SealedTextField(models.BinaryField):  # type: ignore[type-arg]
    """Text, sealed for one row.

    `row` names the attributes that say which row it is; they must be known before the row is saved and stay as they
    are (`pk` where that is a UUID). `owner` is the way to the organisation's id (`server.organisation_id`), under whose
    key it is sealed; without it the platform's. To give a row another name: read the value, then save the whole row.
    """

    description = "Text, encrypted at rest"
    descriptor_class = _Opening

    def __init__(self, *args: Any, row: tuple[str, ...] = ("pk",), owner: str = "", **kwargs: Any) -> None:
        # Neither is part of the schema, so neither is in a migration.
        self.row, self.owner = row, owner
        super().__init__(*args, **kwargs)

    def contribute_to_class(self, cls: type[models.Model], name: str, private_only: bool = False) -> None:
        super().contribute_to_class(cls, name, private_only)
        pre_save.connect(self._look, sender=cls)

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        found: list[checks.CheckMessage] = list(super().check(**kwargs))
        key = self.model._meta.pk
        if "pk" in self.row and (key is None or not key.has_default()):
            found.append(
                checks.Error(
                    f"{self} is bound to a primary key that is not known before the row is saved.",
                    hint="Give the model a UUID key with a default, or name other columns in `row`.",
                    obj=self,
                    id="security.E001",
                )
            )
        return found

    def place(self, instance: models.Model) -> Place:
        """Return where the value of this row lies."""
        owner = attrgetter(self.owner)(instance) if self.owner else PLATFORM
        row = tuple(str(attrgetter(name)(instance)) for name in self.row)
        return Place(self.model._meta.label_lower, self.attname, row, uuid.UUID(str(owner)))

    def open(self, sealed: Sealed, instance: models.Model) -> str:
        """Return the text of a sealed value of this row, or raise `UnsealError`. Empty bytes are a wiped value."""
        return unseal_at(bytes(sealed), self.place(instance)).decode() if sealed else ""

    @sensitive_variables()
    def pre_save(self, model_instance: models.Model, add: bool) -> Any:  # noqa: ARG002 (Django's signature)
        if self.attname not in model_instance.__dict__:
            raise TypeError(
                f"{self} of {model_instance.pk} was not loaded, so saving it would wipe it. Nothing was written. Leave "
                "it out of `update_fields`, or read it first."
            )
        value = model_instance.__dict__[self.attname]
        if value is None or isinstance(value, Sealed):
            differ = bool(value) and self._differ(model_instance, [self.model._meta.pk, *self._bound()])
            if differ or (differ is None and not self._opens(model_instance)):
                raise self._moved(model_instance)
            return value
        return Sealed(seal_at(str(value).encode(), self.place(model_instance)))

    def _look(self, instance: models.Model, update_fields: Iterable[str] | None, **_: Any) -> None:
        """Before a save of some columns: value and binding columns are saved together, or they are as they were."""
        if update_fields is None:
            return
        saved = {name for each in self._bound() for name in (each.name, each.attname) if name in update_fields}
        together = self.name in update_fields or self.attname in update_fields
        apart = [each for each in self._bound() if saved.isdisjoint((each.name, each.attname)) == together]
        if self._differ(instance, apart):
            raise self._moved(instance)

    def _differ(self, instance: models.Model, bound: Sequence[models.Field[Any, Any]]) -> bool | None:
        """Tell whether these columns hold something else in the database; None where the row is not there."""
        if not bound:
            return False
        names = [each.attname for each in bound]
        stored = models.QuerySet(type(instance)).filter(pk=instance.pk).values(*names).first()
        if stored is None:
            return None
        return any(stored[name] != instance.__dict__.get(name, stored[name]) for name in names)

    def _moved(self, instance: models.Model) -> TypeError:
        names = " and ".join(each.name for each in self._bound()) or "its row's key"
        return TypeError(
            f"{self} of {instance.pk} is bound to {names}: with another one nobody could open it any more. Nothing was "
            "written. Read the value before the change, and save the whole row."
        )

    def _opens(self, instance: models.Model) -> bool:
        try:
            self.open(instance.__dict__[self.attname], instance)
        except (UnsealError, KeyGone):
            return False
        return True

    def _bound(self) -> list[models.Field[Any, Any]]:
        """Return the columns, beside the key, that say which row it is and whose."""
        first = {way.partition(".")[0] for way in (*self.row, self.owner)}
        return [each for each in self.model._meta.concrete_fields if not first.isdisjoint((each.name, each.attname))]

    def from_db_value(self, value: Any, *_: Any) -> Sealed | None:
        return None if value is None else Sealed(value)

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        if value == "":
            value = Sealed()  # wiped by an update of many rows: there is nothing to hide
        if value is not None and not isinstance(value, Sealed):
            raise TypeError(
                f"{self} is sealed for its row: save the row. An update of many rows, or a search by it, can't work. "
                "Nothing was written."
            )
        return super().get_db_prep_value(None if value is None else bytes(value), connection, prepared)

    def to_python(self, value: Any) -> Any:
        return value

    def value_to_string(self, obj: models.Model) -> str:
        raise TypeError(f"{self} of {obj.pk} is a secret and is never serialised.")
