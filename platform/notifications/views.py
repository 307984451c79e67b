"""The inbox page: the mails that Hearth would send if it had a mail server."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from notifications import access
from notifications.models import Mail

NEWEST = 100
P = ParamSpec("P")
View = Callable[Concatenate[HttpRequest, P], HttpResponse]


def inbox_reader(view: View[P]) -> View[P]:
    """Let readers of the inbox through. For everybody else, and elsewhere, there is no such page."""

    @wraps(view)
    def guarded(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        if not access.inbox_is_here(request):
            raise Http404
        if access.token_is_right(request.GET.get("token", "")):
            response = redirect(request.path)
            access.remember(response)
            return response
        if not access.may_read(request):
            raise Http404
        return view(request, *args, **kwargs)

    return never_cache(require_safe(guarded))


@inbox_reader
def inbox(request: HttpRequest) -> HttpResponse:
    """List the newest mails."""
    mails = Mail.objects.filter(state=Mail.State.INBOX).defer("text")[:NEWEST]
    return render(request, "notifications/inbox.html", {"mails": mails, "newest": NEWEST})


@inbox_reader
def inbox_mail(request: HttpRequest, mail_id: uuid.UUID) -> HttpResponse:
    """Show one mail with its links to click."""
    mail = get_object_or_404(Mail, pk=mail_id, state=Mail.State.INBOX)
    return render(request, "notifications/mail.html", {"mail": mail})
