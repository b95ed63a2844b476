SELECT next_index, closed FROM :"schema".workflow_streams WHERE name = $1
