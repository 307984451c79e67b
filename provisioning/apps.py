from django.apps import AppConfig

from tenants import seams


class ProvisioningConfig(AppConfig):
    name = "provisioning"
    verbose_name = "Fleet"

    def ready(self) -> None:
        """Answer for regions, and hear of changes."""
        from provisioning import fleet, metrics, services  # noqa: F401, PLC0415 (they need the models)

        seams.register_regions(fleet.open_regions)
        seams.register_places(fleet.take_place)
        seams.register_wake(services.desired_changed)
