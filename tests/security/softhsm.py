"""A real PKCS#11 token in a folder of its own: SoftHSM2."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from security.sources.hsm import HsmSource
from tests import prepare

PIN = "9137-open"


@dataclass(frozen=True)
class Hsm:
    """One SoftHSM; its token can be taken away and brought back."""

    folder: Path
    module: Path
    label: str = "hearth-tests"

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    def source(self, **changes: object) -> HsmSource:
        options = {"token": self.label, "pin_file": self.pin_file} | changes
        return HsmSource(self.module, **options)  # type: ignore[arg-type]  # a test may pass anything

    def settings(self) -> dict[str, object]:
        return {
            "HEARTH_HSM_MODULE": str(self.module),
            "HEARTH_HSM_TOKEN": self.label,
            "HEARTH_HSM_PIN_FILE": str(self.pin_file),
        }

    def take_away(self) -> None:
        """Break every connection and make the token unreachable, as when the HSM's network goes."""
        import pkcs11  # noqa: PLC0415 (needs the environment of `start`)

        pkcs11.lib(str(self.module)).finalize()
        self.tokens.rename(self.folder / "away")

    def bring_back(self) -> None:
        (self.folder / "away").rename(self.tokens)

    def restart(self) -> None:
        """Break every connection; the token can be reached again at once."""
        self.take_away()
        self.bring_back()


def start(folder: Path) -> Hsm:
    """Make a token in `folder`."""
    found = prepare.hsm()
    if found is None:
        raise FileNotFoundError("SoftHSM2 is not installed. Run: make test (or apt-get install softhsm2)")
    hsm = Hsm(folder, Path(found))
    hsm.tokens.mkdir(mode=0o700)
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {hsm.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    hsm.pin_file.touch(mode=0o600)
    hsm.pin_file.write_text(PIN + "\n")
    program = shutil.which("softhsm2-util") or "softhsm2-util"
    words = [program, "--init-token", "--free", "--label", hsm.label, "--pin", PIN, "--so-pin", "so-" + PIN]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    return hsm
