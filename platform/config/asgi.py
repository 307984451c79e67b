"""The ASGI entry point that the web server loads."""

import os
from typing import cast

from django.core.asgi import get_asgi_application

from config.body import App, limited

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

application = limited(cast("App", get_asgi_application()))
