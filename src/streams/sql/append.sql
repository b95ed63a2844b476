SELECT :"schema".stream_append($1, $2, $3, $4, $5, $6, $7)
