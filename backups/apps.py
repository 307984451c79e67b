from django.apps import AppConfig

from provisioning import seams


class BackupsConfig(AppConfig):
    name = "backups"
    verbose_name = "Backups"

    def ready(self) -> None:
        """Say what backs a server up, what needs its keys how long, and which buckets hold key bundles."""
        from backups import key_bundles, points, retained, wiring  # noqa: PLC0415 (they need the models)
        from backups import metrics as _metrics  # noqa: F401, PLC0415 (as above)
        from backups.exporting import steps as exporting  # noqa: PLC0415 (as above)
        from backups.exporting import upkeep as exported  # noqa: PLC0415 (as above)
        from backups.restoring import steps, upkeep  # noqa: PLC0415 (as above)
        from security.keyring.seams import seams as keyring  # noqa: PLC0415

        seams.register_backup(wiring.backup_of)
        seams.register_point(seams.FINAL, points.final)
        seams.register_point(seams.BEFORE_UPGRADE, points.before_upgrade)
        for name in ("look", "environment", "recover", "trial", "settle", "exchange", "drop"):
            seams.register_work(name, getattr(steps, name))
        seams.register_work("look-out", exporting.look)
        seams.register_work("keep", exporting.keep)
        seams.register_ended(upkeep.ended)
        seams.register_ended(exported.ended)
        seams.register_belongings(steps.remove_all)
        keyring.keep_keys_until.append(retained.keep_keys_until)
        keyring.places.append(key_bundles.places)
