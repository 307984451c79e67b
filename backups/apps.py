from django.apps import AppConfig

from provisioning import seams


class BackupsConfig(AppConfig):
    name = "backups"
    verbose_name = "Backups"

    def ready(self) -> None:
        """Say what backs a server up, and which buckets hold key bundles."""
        from backups import key_bundles, wiring  # noqa: PLC0415 (they need the models)
        from security.keyring.seams import seams as keyring  # noqa: PLC0415

        seams.register_backup(wiring.backup_of)
        keyring.places.append(key_bundles.places)
