from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        from accounts import alerts, receivers  # noqa: F401, PLC0415 (needs the models)
        from accounts.reseal import RESEALER, SESSIONS  # noqa: PLC0415 (as above)
        from security.keyring.seams import seams  # noqa: PLC0415 (as above)
        from security.reseal import resealers  # noqa: PLC0415 (as above)

        if alerts.keys_overdue not in seams.overdue:
            seams.overdue.append(alerts.keys_overdue)
            seams.places_late.append(alerts.places_late)
        resealers.extend(each for each in (RESEALER, SESSIONS) if each not in resealers)
