from django.apps import AppConfig


class SecurityConfig(AppConfig):
    name = "security"
    verbose_name = "keys and encryption"

    def ready(self) -> None:
        from security import metrics  # noqa: PLC0415 (needs the models)

        metrics.register()
