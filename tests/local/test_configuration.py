"""What Synapse is told: pure builders, spec in, plain dict out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from signedjson.key import encode_verify_key_base64, get_verify_key, read_signing_keys

from provisioning.providers.base import ServerSpec
from provisioning.providers.local.configuration import Places, homeserver, log_config, render
from provisioning.providers.local.keys import KeyUnreadable, new_secrets, new_signing_key, verify_key

SPEC = ServerSpec(
    server_id="6f0b2a1e-7a51-4a55-9b0b-0a2e0b6b6f11",
    server_name="alice.example.org",
    version="1.163.2",
    vcpu=2,
    memory_mb=4096,
    disk_gb=20,
    object_gb=100,
    users=25,
    secrets=new_secrets(),
)
PLACES = Places(
    port=16001,
    metrics_port=16002,
    socket_dir=Path("/tmp/hearth-x/y"),
    signing_key=Path("/s/config/signing.key"),
    media=Path("/s/media"),
    log_config=Path("/s/config/log.yaml"),
    log=Path("/s/work/homeserver.log"),
)


def test_it_works() -> None:
    config = yaml.safe_load(render(homeserver(SPEC, PLACES)))
    assert config["server_name"] == "alice.example.org"
    assert config["public_baseurl"] == "http://localhost:16001/"
    assert config["database"]["args"]["host"] == "/tmp/hearth-x/y"
    assert config["signing_key_path"] == "/s/config/signing.key"
    assert config["limit_usage_by_mau"] is True
    assert config["max_mau_value"] == 25
    assert config["trusted_key_servers"] == []


def test_it_listens_on_loopback_alone_and_answers_for_its_keys() -> None:
    client, metrics = homeserver(SPEC, PLACES)["listeners"]
    assert client["resources"] == [{"names": ["client", "federation"], "compress": False}]
    assert {one for listener in (client, metrics) for one in listener["bind_addresses"]} == {"127.0.0.1"}
    assert (metrics["type"], metrics["port"]) == ("metrics", 16002)


def test_only_what_is_no_instance_sends_notifications() -> None:
    assert "start_pushers" not in homeserver(SPEC, PLACES)
    assert homeserver(replace(SPEC, pushes=False), PLACES)["start_pushers"] is False


def test_strangers_cannot_register_and_guessing_stays_slow() -> None:
    config = homeserver(SPEC, PLACES)
    assert config["enable_registration"] is False
    assert config["rc_login"]["failed_attempts"] == {"per_second": 0.17, "burst_count": 3}
    assert config["rc_login"]["address"]["burst_count"] >= 100


def test_a_name_that_nobody_proved_does_not_federate() -> None:
    assert homeserver(SPEC, PLACES)["federation_domain_whitelist"] == []
    assert "federation_domain_whitelist" not in homeserver(replace(SPEC, federation=True), PLACES)


def test_private_addresses_stay_blocked() -> None:
    config = homeserver(replace(SPEC, federation=True), PLACES)
    assert not [name for name in config if name.startswith("ip_range") or "blacklist" in name]
    assert config["url_preview_enabled"] is False


def test_a_suspended_server_has_a_message() -> None:
    assert "hs_disabled" not in homeserver(SPEC, PLACES)
    config = homeserver(replace(SPEC, suspended=True, suspend_message="Closed."), PLACES)
    assert (config["hs_disabled"], config["hs_disabled_message"]) == (True, "Closed.")
    assert homeserver(replace(SPEC, suspended=True), PLACES)["hs_disabled_message"]


def test_the_public_address_is_the_proxys_where_there_is_one() -> None:
    config = homeserver(replace(SPEC, public_url="https://matrix.example.org"), PLACES)
    assert config["public_baseurl"] == "https://matrix.example.org/"


def test_the_same_spec_gives_the_same_text() -> None:
    assert render(homeserver(SPEC, PLACES)) == render(homeserver(replace(SPEC), PLACES))


def test_no_log_names_who_read_what() -> None:
    assert log_config(PLACES)["loggers"]["synapse.access"]["level"] == "WARNING"


def test_two_servers_share_no_secret() -> None:
    one, two = new_secrets(), new_secrets()
    assert not set(one.values()) & set(two.values())
    assert set(one) == {"signing_key", "macaroon", "registration", "form", "database", "jwt", "replication", "redis"}


def test_a_signing_key_has_synapses_own_format() -> None:
    line = new_signing_key()
    key = read_signing_keys([line])[0]
    assert verify_key(line) == (f"ed25519:{key.version}", encode_verify_key_base64(get_verify_key(key)))


@pytest.mark.parametrize("line", ["", "ed25519 a_x", "ed25519 a_x !!!", "ed25519 a_x AAAA", "rsa a_x " + "A" * 43])
def test_what_is_no_signing_key_is_refused(line: str) -> None:
    with pytest.raises(KeyUnreadable):
        verify_key(line)
