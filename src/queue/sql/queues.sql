SELECT name, policy FROM :"queue_schema".queue WHERE name IN ($1, $2)
