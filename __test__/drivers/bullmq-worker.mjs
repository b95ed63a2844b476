// Takes a step of the queue given as arguments, tells the parent, and never ends it.
import { createBullMQQueue } from '../../examples/queues/bullmq.mjs';

const [url, name, lockMs] = process.argv.slice(2);
/** @returns {Promise<Response>} */
const proxyStep = () => {
  process.send?.('running');
  return new Promise(() => {});
};
const proxy = { proxyStep, proxyWorkflow: proxyStep };
await createBullMQQueue({ url, name, proxy, lockMs: Number(lockMs) }).start();
process.once('disconnect', () => process.exit());
