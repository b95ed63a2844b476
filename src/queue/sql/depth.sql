SELECT name, state::text,
       pg_catalog.count(*),
       pg_catalog.count(*) FILTER (WHERE state OPERATOR(pg_catalog.<) 'active' AND start_after > now()),
       (extract(epoch FROM now() - min(start_after) FILTER (WHERE state OPERATOR(pg_catalog.<) 'active' AND start_after <= now())) * 1000.0)::bigint
FROM :"queue_schema".job WHERE name IN ($1, $2) GROUP BY 1, 2
