SELECT column_name::text FROM information_schema.columns WHERE table_schema::text = $1 AND table_name::text = 'job'
