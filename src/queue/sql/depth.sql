SELECT name, state::text,
       count(*),
       count(*) FILTER (WHERE state < 'active' AND start_after > now()),
       (extract(epoch FROM now() - min(start_after) FILTER (WHERE state < 'active' AND start_after <= now())) * 1000)::bigint
FROM :"queue_schema".job WHERE name IN ($1, $2) GROUP BY 1, 2
