// What the snippets of the README use without importing it.
declare const createWorld: typeof import('@workflow/world-postgres').createWorld;
declare const createHttpProxy: typeof import('@workflow/world-postgres').createHttpProxy;
declare const createPgBossFunctionProxyQueue: typeof import('@workflow/world-postgres').createPgBossFunctionProxyQueue;
declare const stepEntrypoint: (request: Request) => Promise<Response>;
declare const workflowEntrypoint: (request: Request) => Promise<Response>;

type QueuedMessage = import('@workflow/world-postgres').MessageData;
declare const myQueue: {
  push(topic: string, message: QueuedMessage): Promise<void>;
  consume(topic: string, handler: (message: QueuedMessage) => Promise<void>): Promise<void>;
};
