"""Pages of organisations. Each view parses, asks `tenants.access`, calls one verb, and answers."""
