from django.apps import AppConfig


class TransportConfig(AppConfig):
    name = "security.transport"
    verbose_name = "internal certificates"
