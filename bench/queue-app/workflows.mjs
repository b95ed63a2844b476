export const ids = {};
