-- Chunks from $2 on (negative: counted from the end), at most :chunks of them and about $3 bytes, but at
-- least one, with the state of their stream. One statement has one snapshot: where the stream is
-- closed here, the chunks before next_index are all there are.
SELECT s.next_index, s.closed, s.start, c.index, c.data
FROM (
  SELECT id, next_index, closed,
         CASE WHEN $2::bigint < 0 THEN greatest(next_index + $2::bigint, 0) ELSE $2::bigint END AS start
  FROM :"schema".workflow_streams
  WHERE name = $1
) s
LEFT JOIN LATERAL (
  SELECT page.index, page.data,
         sum(octet_length(page.data)) OVER (ORDER BY page.index) - octet_length(page.data) AS bytes_before
  FROM (
    SELECT index, data
    FROM :"schema".workflow_stream_chunks
    WHERE stream_id = s.id AND index >= s.start
    ORDER BY index
    LIMIT :chunks
  ) page
) c ON c.bytes_before < $3::bigint
ORDER BY c.index
