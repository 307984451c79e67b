-- What must be true of a Synapse database that went back in time, before Synapse starts on it for the first time.
-- Runs in one transaction, after `settle.py` has filled the tables in pg_temp and moved the sequences. Again is right.

-- Clients have used up keys that are here again; two sessions with one key are no secret. Clients upload new ones as
-- soon as they hear that there are none. A fallback key said to be used is replaced by its client.
TRUNCATE e2e_one_time_keys_json;
UPDATE e2e_fallback_keys_json SET used = true WHERE NOT used;

-- Accounts as the living server has them. Who was not asked says nothing: then the table `known` lacks that part.
UPDATE users SET locked = name IN (SELECT name FROM since_locked)
 WHERE EXISTS (SELECT FROM known WHERE part = 'locked') AND locked IS DISTINCT FROM (name IN (SELECT name FROM since_locked));
UPDATE users SET locked = true WHERE name IN (SELECT name FROM also_locked);
UPDATE users SET admin = 0
 WHERE EXISTS (SELECT FROM known WHERE part = 'admins') AND admin <> 0 AND name NOT IN (SELECT name FROM since_admins);

-- Deactivated since then: what Synapse's own deactivation does, all but leaving the rooms. That it does itself when it
-- starts, for whom `users_pending_deactivation` names.
CREATE TEMPORARY TABLE leaving ON COMMIT DROP AS
 SELECT name FROM users WHERE deactivated = 0 AND name IN (SELECT name FROM since_deactivated);
INSERT INTO users_pending_deactivation (user_id)
 SELECT name FROM leaving WHERE name NOT IN (SELECT user_id FROM users_pending_deactivation);
DELETE FROM user_threepids WHERE user_id IN (SELECT name FROM leaving);
DELETE FROM user_external_ids WHERE user_id IN (SELECT name FROM leaving);
DELETE FROM account_data WHERE user_id IN (SELECT name FROM leaving);
DELETE FROM room_account_data WHERE user_id IN (SELECT name FROM leaving);
DELETE FROM e2e_room_keys WHERE user_id IN (SELECT name FROM leaving);
DELETE FROM e2e_room_keys_versions WHERE user_id IN (SELECT name FROM leaving);
DELETE FROM user_directory WHERE user_id IN (SELECT name FROM leaving);
DELETE FROM user_directory_search WHERE user_id IN (SELECT name FROM leaving);
DELETE FROM pushers WHERE user_name IN (SELECT name FROM leaving);
INSERT INTO erased_users (user_id)
 SELECT name FROM since_erased WHERE name IN (SELECT name FROM users) AND name NOT IN (SELECT user_id FROM erased_users);
UPDATE profiles SET displayname = NULL, avatar_url = NULL WHERE full_user_id IN (SELECT name FROM since_erased);
UPDATE users SET deactivated = 1, password_hash = NULL WHERE name IN (SELECT name FROM leaving);

-- Sessions that were ended since then, and those of who left. Where all end, the devices stay: their owners have keys
-- for them, and sign in again.
CREATE TEMPORARY TABLE ended ON COMMIT DROP AS
 SELECT user_id, device_id FROM devices
  WHERE user_id IN (SELECT name FROM leaving)
     OR (EXISTS (SELECT FROM known WHERE part = 'devices') AND NOT coalesce(hidden, false)
         AND (user_id, device_id) NOT IN (SELECT user_id, device_id FROM since_devices));
DELETE FROM dehydrated_devices USING ended WHERE (dehydrated_devices.user_id, dehydrated_devices.device_id) = (ended.user_id, ended.device_id);
DELETE FROM e2e_device_keys_json USING ended WHERE (e2e_device_keys_json.user_id, e2e_device_keys_json.device_id) = (ended.user_id, ended.device_id);
DELETE FROM e2e_fallback_keys_json USING ended WHERE (e2e_fallback_keys_json.user_id, e2e_fallback_keys_json.device_id) = (ended.user_id, ended.device_id);
DELETE FROM device_inbox USING ended WHERE (device_inbox.user_id, device_inbox.device_id) = (ended.user_id, ended.device_id);
DELETE FROM devices USING ended WHERE (devices.user_id, devices.device_id) = (ended.user_id, ended.device_id);
DELETE FROM access_tokens
 WHERE EXISTS (SELECT FROM known WHERE part = 'no-sessions')
    OR user_id IN (SELECT name FROM leaving)
    OR (EXISTS (SELECT FROM known WHERE part = 'devices')
        AND (device_id IS NULL OR (user_id, device_id) NOT IN (SELECT user_id, device_id FROM since_devices)));
DELETE FROM refresh_tokens
 WHERE EXISTS (SELECT FROM known WHERE part = 'no-sessions')
    OR user_id IN (SELECT name FROM leaving)
    OR (EXISTS (SELECT FROM known WHERE part = 'devices')
        AND (user_id, device_id) NOT IN (SELECT user_id, device_id FROM since_devices));
DELETE FROM pushers
 WHERE access_token IS NOT NULL AND access_token NOT IN (SELECT id FROM access_tokens);
