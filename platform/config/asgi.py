"""The ASGI entry point that the web server loads. By its lifespan the internal listener starts and ends beside it."""

import os
from typing import cast

from django.core.asgi import get_asgi_application

from config.body import App, limited
from observability import openfiles

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

openfiles.raise_limit()
_pages = limited(cast("App", get_asgi_application()))

from config.internal import with_listener  # noqa: E402 (it needs the apps, which are loaded above)

application = with_listener(_pages)
