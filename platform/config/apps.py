from __future__ import annotations

import importlib

from django.apps import AppConfig


class ConfigConfig(AppConfig):
    name = "config"
    verbose_name = "Hearth"

    def ready(self) -> None:
        # Shared tasks find their application only if some part of the process has made it.
        importlib.import_module("config.celery").app.set_default()
