// Types only; a module all the same, for an import that is not marked as one of types.
export {};
