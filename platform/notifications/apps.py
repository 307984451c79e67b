from django.apps import AppConfig


class NotificationsConfig(AppConfig):
    name = "notifications"

    def ready(self) -> None:
        from notifications import metrics, wake  # noqa: F401, PLC0415 (they need the models; the first registers itself)

        wake.register()
