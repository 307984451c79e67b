from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        from accounts import receivers  # noqa: F401, PLC0415 (needs the models)
        from accounts.reseal import RESEALER, SESSIONS  # noqa: PLC0415 (as above)
        from security.reseal import resealers  # noqa: PLC0415 (as above)

        resealers.extend(each for each in (RESEALER, SESSIONS) if each not in resealers)
