-- What a restore applies again of the living server: one line of JSON, `Settle.since` of a request. For psql, on the
-- server's own database, right before its Synapse is stopped for good (or after).
SELECT json_build_object(
  'locked', (SELECT coalesce(json_agg(name), '[]') FROM users WHERE locked),
  'deactivated', (SELECT coalesce(json_agg(name), '[]') FROM users WHERE deactivated <> 0),
  'erased', (SELECT coalesce(json_agg(user_id), '[]') FROM erased_users),
  'admins', (SELECT coalesce(json_agg(name), '[]') FROM users WHERE admin <> 0),
  'devices', (SELECT coalesce(json_agg(json_build_array(user_id, device_id)), '[]')
                FROM devices WHERE NOT coalesce(hidden, false)),
  'sequences', (SELECT coalesce(json_object_agg(sequencename, last_value), '{}')
                  FROM pg_sequences WHERE last_value IS NOT NULL AND data_type = 'bigint'::regtype)
);
