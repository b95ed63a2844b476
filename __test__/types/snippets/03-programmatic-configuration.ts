const world = createWorld({
  connectionString: "postgres://...",
  securityToken: "your-secret-token",
});
