createPgBossFunctionProxyQueue({
  stepEntrypoint,
  workflowEntrypoint,
  connectionString: "postgres://...",
  securityToken: "your-secret-token",
  jobPrefix: "myapp_",
  queueConcurrency: 10,
})
