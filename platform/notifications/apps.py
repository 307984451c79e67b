from django.apps import AppConfig


class NotificationsConfig(AppConfig):
    name = "notifications"

    def ready(self) -> None:
        from notifications import wake  # noqa: PLC0415 (needs the models)

        wake.register()
