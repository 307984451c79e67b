from celery.signals import task_prerun
from django.apps import AppConfig
from django.core.signals import request_started


class SecurityConfig(AppConfig):
    name = "security"
    verbose_name = "keys and encryption"

    def ready(self) -> None:
        from security import metrics, reseal  # noqa: PLC0415 (needs the models)
        from security.keyring import generation  # noqa: PLC0415 (as above)
        from security.keyring.seams import seams  # noqa: PLC0415 (as above)

        # Twice in one process where Django makes another registry of apps.
        metrics.register_once()
        for begins in (request_started, task_prerun):
            begins.connect(generation.ask_again, dispatch_uid="security.generation")
        if reseal.needs_key_file not in seams.root_needed:
            seams.root_needed.append(reseal.needs_key_file)
