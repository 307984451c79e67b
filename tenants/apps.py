from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"
    verbose_name = "Customers"

    def ready(self) -> None:
        from security.keyring.seams import seams  # noqa: PLC0415 (needs the models)
        from tenants import encryption, selectors  # noqa: PLC0415 (as above)

        # Twice in one process where Django makes another registry of apps.
        if encryption.owner_names not in seams.owner_names:
            seams.owner_names.append(encryption.owner_names)
            seams.keep_keys_until.append(encryption.keep_keys_until)
            seams.owner_of_server.append(selectors.owner_of_server)
