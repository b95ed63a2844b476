import { createHash, createHmac, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { compileExpression } from './qstash-expression.mjs';

/** Ids are remembered for so long. */
const DEDUPLICATION_MS = 600_000;
const SIGNATURE_SECONDS = 300;
const LONGEST_RETRY_MS = 86_400_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;
const UNITS = {
  d: 86_400_000,
  h: 3_600_000,
  m: 60_000,
  s: 1000,
  ms: 1,
  us: 1e-3,
  µs: 1e-3,
  ns: 1e-6,
};

// A test may replace Date.now by the clock of the stand-in, which must go on all the same.
const realNow = Date.now;

/** @typedef {{ after: (cleanup: () => Promise<void> | void) => void }} Test a test context, or node:test */

/**
 * What a request to the API is answered with instead. `done`: after what it asks for was done all the
 * same. `hangUp`: with no answer at all.
 * @typedef {{ status?: number, headers?: Record<string, string>, body?: unknown, done?: boolean, hangUp?: boolean }} Answer
 */

/** @typedef {{ method: string, path: string, headers: Record<string, string>, body: Buffer }} ApiRequest */

/**
 * Shares of all deliveries, from 0 to 1, and of all requests that publish.
 * @typedef {object} Faults
 * @property {number} [seed]
 * @property {number} [duplicate] are delivered twice
 * @property {number} [failBefore] do not reach the app, and are repeated
 * @property {number} [failAfter] reach the app, but its answer gets lost, and are repeated
 * @property {number} [reorder] are held back for up to `reorderMs`
 * @property {number} [reorderMs]
 * @property {number} [refuse] publications are answered 503
 * @property {number} [throttle] publications are answered 429, for a second
 * @property {number} [lose] publications are done, but the answer gets lost
 */

/**
 * @typedef {object} Options
 * @property {string} [token]
 * @property {number} [maxRetries] of the plan
 * @property {number} [maxDelaySeconds] of the plan
 * @property {number} [maxMessageBytes] of the plan
 * @property {(url: string) => string} [route] where the app is really reached, behind its public URL
 * @property {boolean} [impatient] the clock jumps to the next delivery whenever nothing else is under way
 * @property {Faults} [faults]
 * @property {(request: ApiRequest) => Answer | undefined} [intercept]
 */

/**
 * @typedef {object} Message
 * @property {string} messageId
 * @property {string} url
 * @property {string} method
 * @property {Record<string, string>} headers that are forwarded
 * @property {Buffer} body
 * @property {number} maxRetries
 * @property {((retried: number) => number) | undefined} retryDelay in milliseconds
 * @property {number} retried
 * @property {number} createdAt
 * @property {number} due
 */

/** @typedef {Message & { signature: string, status: number, answer: string, at: number }} Delivery `status` 0: no answer */
/** @typedef {Message & { dlqId: string, status: number, answer: string, answerHeaders: Record<string, string> }} Dead */

class Refused extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * A stand-in for QStash, written from its published REST description: takes messages, and delivers them
 * over HTTP, signed. Time is its own: `advance` moves it on.
 *
 * @param {Test} t
 * @param {Options} [options]
 */
export async function startQStash(t, options = {}) {
  const { token = `token-${randomBytes(12).toString('hex')}`, route = (url) => url } = options;
  const { maxRetries = 5, maxDelaySeconds = 604_800, maxMessageBytes = 2 ** 20 } = options;
  const { faults = {}, impatient = false } = options;
  const random = generator(faults.seed ?? 1);
  const happens = (/** @type {number | undefined} */ share) =>
    share !== undefined && random() < share;
  const newKey = () => `sig_${randomBytes(14).toString('hex')}`;

  let { intercept } = options;
  let keys = { current: newKey(), next: newKey() };
  let skippedMs = 0;
  let stopped = false;
  let underWay = 0;
  let count = 0;
  /** @type {NodeJS.Timeout | undefined} */
  let timer;
  /** @type {Set<Message>} */
  const waiting = new Set();
  /** @type {Map<string, { messageId: string, at: number }>} */
  const known = new Map();
  /** @type {ApiRequest[]} */
  const requests = [];
  /** @type {Delivery[]} */
  const deliveries = [];
  /** @type {Dead[]} */
  const dead = [];

  const now = () => realNow() + skippedMs;

  /**
   * @param {string} destination
   * @param {Record<string, string>} headers
   * @param {Buffer} body
   */
  function publish(destination, headers, body) {
    if (!/^https?:\/\//.test(destination) || !URL.canParse(destination)) {
      throw new Refused(400, `invalid destination url: ${destination}`);
    }
    if (body.byteLength > maxMessageBytes) throw new Refused(413, 'quota maxMessageSize exceeded');
    const at = now();
    const due = dueOf(headers, at);
    if (due - at > maxDelaySeconds * 1000) throw new Refused(400, 'quota maxDelay exceeded');
    const retries = Number(headers['upstash-retries'] ?? Math.min(3, maxRetries));
    if (!Number.isInteger(retries) || retries < 0) throw new Refused(400, 'invalid retries');
    if (retries > maxRetries) throw new Refused(400, 'quota maxRetries exceeded');

    const id = headers['upstash-deduplication-id'];
    if (id?.includes(':')) throw new Refused(400, "DeduplicationId cannot contain ':'");
    const first = id === undefined ? undefined : known.get(id);
    if (first && at - first.at < DEDUPLICATION_MS) {
      return { messageId: first.messageId, deduplicated: true };
    }
    const messageId = `msg_${randomBytes(20).toString('base64url')}`;
    if (id !== undefined) known.set(id, { messageId, at });
    waiting.add({
      messageId,
      url: destination,
      method: headers['upstash-method'] ?? 'POST',
      headers: forwarded(headers),
      body,
      maxRetries: retries,
      retryDelay: retryDelayOf(headers),
      retried: 0,
      createdAt: at,
      due: happens(faults.reorder) ? due + random() * (faults.reorderMs ?? 200) : due,
    });
    wake();
    return { messageId };
  }

  /** @param {Buffer} body */
  function publishBatch(body) {
    const messages = parse(body);
    if (!Array.isArray(messages)) throw new Refused(400, 'a batch must be an array');
    return messages.map(({ destination, headers = {}, body: text = '' }) => {
      try {
        const lower = Object.entries(headers).map(([name, value]) => [
          name.toLowerCase(),
          `${value}`,
        ]);
        return publish(destination, Object.fromEntries(lower), Buffer.from(text));
      } catch (error) {
        if (error instanceof Refused) return { error: error.message };
        throw error;
      }
    });
  }

  /** @param {ApiRequest} request @returns {{ status: number, body: unknown }} */
  function perform({ method, path, headers, body }) {
    const authorization = headers.authorization ?? '';
    if (authorization !== `Bearer ${token}`) throw new Refused(401, 'invalid token');
    const publishing = '/v2/publish/';
    if (method === 'POST' && path.startsWith(publishing)) {
      const answer = publish(path.slice(publishing.length), headers, body);
      return { status: 'deduplicated' in answer ? 202 : 200, body: answer };
    }
    const [pathname] = path.split('?');
    if (method === 'POST' && pathname === '/v2/batch')
      return { status: 200, body: publishBatch(body) };
    if (method === 'GET' && pathname === '/v2/keys') return { status: 200, body: keys };
    if (method === 'GET' && pathname === '/v2/dlq')
      return { status: 200, body: { messages: dead.map(toDlq) } };
    throw new Refused(404, 'not found');
  }

  /** @param {ApiRequest} request @returns {Answer | undefined} */
  function fault({ method }) {
    if (method !== 'POST') return undefined;
    if (happens(faults.refuse)) return { status: 503, body: { error: 'service unavailable' } };
    if (happens(faults.throttle)) {
      const headers = {
        'Burst-RateLimit-Limit': '100',
        'Burst-RateLimit-Remaining': '0',
        'Burst-RateLimit-Reset': `${Math.ceil(realNow() / 1000) + 1}`,
      };
      return { status: 429, headers, body: { error: 'rate limit exceeded' } };
    }
    return happens(faults.lose) ? { done: true, hangUp: true } : undefined;
  }

  const server = createServer(async (incoming, outgoing) => {
    const chunks = [];
    for await (const chunk of incoming) chunks.push(chunk);
    /** @type {ApiRequest} */
    const request = {
      method: incoming.method ?? '',
      path: incoming.url ?? '',
      headers: /** @type {Record<string, string>} */ (incoming.headers),
      body: Buffer.concat(chunks),
    };
    requests.push(request);
    const instead = intercept?.(request) ?? fault(request);
    /** @type {Answer} */
    let answer = instead ?? {};
    if (!instead || instead.done) {
      try {
        answer = { ...perform(request), ...instead };
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        answer = { status: error.status, body: { error: error.message } };
      }
    }
    if (answer.hangUp) {
      incoming.socket.destroy();
      return;
    }
    outgoing.writeHead(answer.status ?? 200, {
      'content-type': 'application/json',
      ...answer.headers,
    });
    outgoing.end(typeof answer.body === 'string' ? answer.body : JSON.stringify(answer.body ?? {}));
  });

  /** Delivers what is due, and comes back for the rest. */
  function wake() {
    clearTimeout(timer);
    if (stopped) return;
    const at = now();
    for (const message of [...waiting]) {
      if (message.due > at) continue;
      waiting.delete(message);
      underWay += 1;
      void deliver(message).finally(() => {
        underWay -= 1;
        wake();
      });
    }
    if (waiting.size === 0) return;
    const pause = Math.min(...[...waiting].map(({ due }) => due)) - now();
    if (impatient && underWay === 0 && pause > 0) {
      skippedMs += pause;
      setImmediate(wake);
      return;
    }
    timer = setTimeout(wake, Math.min(Math.max(0, Math.ceil(pause)), LONGEST_TIMER_MS));
  }

  /** @param {Message} message */
  async function deliver(message) {
    const answers = [attempt(message)];
    if (happens(faults.duplicate)) answers.push(attempt(message));
    const [answer] = await Promise.all(answers);
    if (stopped || (answer.status >= 200 && answer.status < 300)) return;
    const final = answer.status === 489 && answer.headers['upstash-nonretryable-error'] === 'true';
    if (final || message.retried >= message.maxRetries) {
      count += 1;
      const { status, text, headers } = answer;
      dead.push({
        ...message,
        dlqId: `dlq-${count}`,
        status,
        answer: text,
        answerHeaders: headers,
      });
      return;
    }
    const due = now() + pauseOf(message, answer.headers, now());
    waiting.add({ ...message, retried: message.retried + 1, due });
  }

  /** @param {Message} message @returns {Promise<{ status: number, text: string, headers: Record<string, string> }>} */
  async function attempt(message) {
    const lost = { status: 0, text: '', headers: {} };
    if (happens(faults.failBefore)) return lost;
    const answerIsLost = happens(faults.failAfter);
    const signature = sign(keys.current, claimsOf(message.url, message.body));
    const at = now();
    /** @type {typeof lost} */
    let answer;
    try {
      const response = await fetch(route(message.url), {
        method: message.method,
        headers: {
          ...message.headers,
          'user-agent': 'Upstash-QStash',
          'upstash-signature': signature,
          'upstash-message-id': message.messageId,
          'upstash-retried': String(message.retried),
        },
        body: new Uint8Array(message.body),
        redirect: 'manual',
      });
      const { status, headers } = response;
      answer = { status, text: await response.text(), headers: Object.fromEntries(headers) };
    } catch {
      answer = lost;
    }
    deliveries.push({ ...message, signature, status: answer.status, answer: answer.text, at });
    return answerIsLost ? lost : answer;
  }

  await listen(0);
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());

  /** @param {number} onPort */
  async function listen(onPort) {
    server.listen(onPort, '127.0.0.1');
    await once(server, 'listening');
  }

  async function close() {
    server.close();
    server.closeAllConnections();
    await once(server, 'close');
  }

  async function stop() {
    stopped = true;
    clearTimeout(timer);
    if (server.listening) await close();
  }
  t.after(stop);

  return {
    url: `http://127.0.0.1:${port}`,
    token,
    keys: () => keys,
    requests,
    deliveries,
    dead,
    waiting,
    now,
    /** Settings for a World whose app is at `targetUrl`. @param {string} targetUrl */
    env: (targetUrl) => ({
      QSTASH_URL: `http://127.0.0.1:${port}`,
      QSTASH_TOKEN: token,
      QSTASH_TARGET_URL: targetUrl,
      QSTASH_CURRENT_SIGNING_KEY: keys.current,
      QSTASH_NEXT_SIGNING_KEY: keys.next,
    }),
    /** Nothing waits and nothing is under way. */
    isIdle: () => waiting.size === 0 && underWay === 0,
    /** @param {number} ms */
    advance(ms) {
      skippedMs += ms;
      wake();
    },
    /** As an account does: the next key becomes the current one. */
    rotateKeys() {
      keys = { current: keys.next, next: newKey() };
    },
    /** @param {Options['intercept']} replacement */
    setIntercept(replacement) {
      intercept = replacement;
    },
    /** Connections are refused from now on; messages that it has are delivered all the same. */
    down: close,
    up: () => listen(port),
    stop,
  };
}

/** @typedef {Awaited<ReturnType<typeof startQStash>>} QStash */

/**
 * What QStash says of a delivery.
 *
 * @param {string} url
 * @param {Uint8Array} body
 * @param {number} [seconds] of the real clock: the receiver has that one
 */
export function claimsOf(url, body, seconds = Math.floor(realNow() / 1000)) {
  return {
    iss: 'Upstash',
    sub: url,
    exp: seconds + SIGNATURE_SECONDS,
    nbf: seconds,
    iat: seconds,
    jti: `jwt_${randomBytes(15).toString('hex')}`,
    // With its padding, as QStash has it.
    body: `${createHash('sha256').update(body).digest('base64url')}=`,
  };
}

/** @param {string} key @param {object} claims */
export function sign(key, claims) {
  const [header, payload] = [{ alg: 'HS256', typ: 'JWT' }, claims].map((part) =>
    Buffer.from(JSON.stringify(part)).toString('base64url'),
  );
  const signature = createHmac('sha256', key).update(`${header}.${payload}`).digest('base64url');
  return `${header}.${payload}.${signature}`;
}

/** @param {Buffer} body */
function parse(body) {
  try {
    return JSON.parse(body.toString());
  } catch {
    throw new Refused(400, 'invalid json');
  }
}

/** @param {Record<string, string>} headers */
function forwarded(headers) {
  const prefix = 'upstash-forward-';
  const entries = Object.entries(headers)
    .filter(([name]) => name.startsWith(prefix))
    .map(([name, value]) => [name.slice(prefix.length), value]);
  const type = headers['content-type'];
  return Object.fromEntries(type ? [...entries, ['content-type', type]] : entries);
}

/** @param {Record<string, string>} headers @param {number} at */
function dueOf(headers, at) {
  const { 'upstash-not-before': notBefore, 'upstash-delay': delay } = headers;
  if (notBefore !== undefined) {
    if (!/^\d+$/.test(notBefore)) throw new Refused(400, 'invalid not-before');
    return Math.max(at, Number(notBefore) * 1000);
  }
  if (delay === undefined) return at;
  const ms = /^(\d+[smhd])+$/.test(delay) ? durationMs(delay) : undefined;
  if (ms === undefined) throw new Refused(400, 'invalid delay');
  return at + ms;
}

/** Such as `1d10h30m`. @param {string} text */
function durationMs(text) {
  if (!/^(\d+(\.\d+)?(ns|us|µs|ms|s|m|h|d))+$/.test(text)) return undefined;
  return [...text.matchAll(/(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)/g)].reduce(
    (ms, [, number, unit]) => ms + Number(number) * UNITS[/** @type {keyof typeof UNITS} */ (unit)],
    0,
  );
}

/** @param {Record<string, string>} headers */
function retryDelayOf(headers) {
  const expression = headers['upstash-retry-delay'];
  if (expression === undefined) return undefined;
  try {
    return compileExpression(expression);
  } catch {
    throw new Refused(400, 'invalid retry delay expression');
  }
}

/**
 * How long QStash waits before it repeats a delivery.
 *
 * @param {Message} message
 * @param {Record<string, string>} answerHeaders
 * @param {number} at
 */
function pauseOf({ retryDelay, retried }, answerHeaders, at) {
  const asked = retryAfterMs(answerHeaders['retry-after'], at);
  if (asked !== undefined && asked >= 0 && asked <= LONGEST_RETRY_MS) return asked;
  const ms = retryDelay ? retryDelay(retried) : Math.exp(2.5 * (retried + 1)) * 1000;
  return Math.min(Math.max(0, ms), LONGEST_RETRY_MS);
}

/** @param {string | undefined} header @param {number} at */
function retryAfterMs(header, at) {
  if (header === undefined) return undefined;
  if (/^\d+(\.\d+)?$/.test(header)) return Number(header) * 1000;
  const date = Date.parse(header);
  return durationMs(header) ?? (Number.isNaN(date) ? undefined : date - at);
}

/** As the API lists it. @param {Dead} message */
function toDlq({ dlqId, messageId, url, method, headers, body, maxRetries, createdAt, ...answer }) {
  const text = body.toString();
  const isText = Buffer.from(text).equals(body);
  return {
    dlqId,
    messageId,
    url,
    method,
    header: Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, [value]])),
    body: isText ? text : '',
    bodyBase64: isText ? '' : body.toString('base64'),
    maxRetries,
    createdAt,
    responseStatus: answer.status,
    responseBody: answer.answer,
    responseHeader: Object.fromEntries(
      Object.entries(answer.answerHeaders).map(([name, value]) => [name, [value]]),
    ),
  };
}

/** Numbers from 0 to 1, the same for the same seed (mulberry32). @param {number} seed */
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
