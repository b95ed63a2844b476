SELECT pg_notify($1, $2), pg_notify($1, $3)
