/** What a queue of your own is made of. */
export type { MessageData, QueueDriver, WkfProxy } from '../index.js';
