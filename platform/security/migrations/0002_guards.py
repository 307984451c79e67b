"""The database itself refuses to lose a key: no data key under a key that is going, no going while one is needed."""

from django.db import migrations

FORWARD = """
CREATE FUNCTION security_data_key_guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    since timestamptz;
BEGIN
    -- Whoever retires, destroys or compromises a key locks it FOR UPDATE first, and waits for this.
    SELECT compromised INTO since FROM security_keyencryptionkey
        WHERE id = NEW.kek_id AND owner = NEW.owner AND state IN ('active', 'decrypt-only') FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Key version % takes no data keys of this owner any more. Nothing was written; try again.', NEW.kek_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    -- Made by somebody who looked for the active version just before it was compromised.
    IF TG_OP = 'INSERT' AND since IS NOT NULL THEN
        NEW.reencrypt := coalesce(NEW.reencrypt, now());
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER security_data_key_guard BEFORE INSERT OR UPDATE OF kek_id ON security_datakey
    FOR EACH ROW EXECUTE FUNCTION security_data_key_guard();

CREATE FUNCTION security_kek_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        RAISE EXCEPTION 'Key versions are destroyed, never deleted.' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF TG_OP = 'INSERT' OR NEW.root_id <> OLD.root_id THEN
        PERFORM 1 FROM security_rootkey WHERE id = NEW.root_id AND state <> 'retired' FOR KEY SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'Root key % is retired. Nothing was written; try again.', NEW.root_id
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END IF;
    IF TG_OP = 'INSERT' THEN
        RETURN NEW;
    END IF;
    IF OLD.state = 'destroyed' THEN
        RAISE EXCEPTION 'Key version % is destroyed and stays so.', OLD.id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NEW.state IN ('retired', 'destroyed')
            AND EXISTS (SELECT 1 FROM security_datakey WHERE kek_id = NEW.id) THEN
        RAISE EXCEPTION 'Key version % still wraps data keys. Nothing was changed.', NEW.id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER security_kek_guard BEFORE INSERT OR UPDATE OR DELETE ON security_keyencryptionkey
    FOR EACH ROW EXECUTE FUNCTION security_kek_guard();
"""
BACKWARD = """
DROP TRIGGER security_kek_guard ON security_keyencryptionkey;
DROP FUNCTION security_kek_guard();
DROP TRIGGER security_data_key_guard ON security_datakey;
DROP FUNCTION security_data_key_guard();
"""


class Migration(migrations.Migration):
    dependencies = [("security", "0001_initial")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
