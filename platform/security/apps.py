from celery.signals import task_prerun
from django.apps import AppConfig
from django.core.signals import request_started


class SecurityConfig(AppConfig):
    name = "security"
    verbose_name = "keys and encryption"

    def ready(self) -> None:
        from security import metrics, reseal  # noqa: F401, PLC0415 (they need the models; the first registers itself)
        from security.keyring import copies, generation, publish  # noqa: PLC0415 (as above)
        from security.keyring.seams import seams  # noqa: PLC0415 (as above)

        for begins in (request_started, task_prerun):
            begins.connect(generation.ask_again, dispatch_uid="security.generation")
        if reseal.needs_key_file not in seams.root_needed:
            seams.root_needed += [reseal.needs_key_file, publish.root_needed]
            seams.copies_until += [copies.in_bundles, copies.in_database_copies]
            seams.places.append(publish.folders)
