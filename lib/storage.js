import { call } from './errors.js';
import { bytesOf, decodeEntity, decodeEvent, decodeWithPayloads, encodeEvent } from './events.js';
import { asking, optionalInteger, optionalString, reading, string } from './input.js';
import { appendOrFail, appendReplayed, endsHold } from './replays.js';

/** @typedef {import('./core.js').Core} Core */
/** @typedef {import('../native/index.cjs').AppendRequest} AppendRequest */
/** @typedef {import('../native/index.cjs').NodeReply} NodeReply */
/** @typedef {{ limit?: number, cursor?: string, sortOrder?: string }} Pagination */
/** @typedef {{ resolveData?: 'all' | 'none', pagination?: Pagination }} ReadParams */

/**
 * The SDK's Storage over the core.
 * @param {() => Core} core
 */
export function createStorage(core) {
  const ask = asking(core);

  return {
    runs: {
      /** @param {string} id @param {ReadParams} [params] */
      async get(id, params) {
        return run(await ask((core) => core.run(string('runId', id), withPayloads(params))));
      },
      /** @param {ReadParams & { workflowName?: string, status?: string }} [params] */
      async list(params) {
        const reply = await ask((core) => {
          const name = optionalString('workflowName', params?.workflowName);
          const status = optionalString('status', params?.status);
          return core.runs(name, status, pageOf(params), withPayloads(params));
        });
        return page(reply, (item) => decodeWithPayloads(item, reply, 'input', 'output'));
      },
    },
    steps: {
      /** @param {string | undefined} runId @param {string} stepId @param {ReadParams} [params] */
      async get(runId, stepId, params) {
        const reply = await ask((core) => {
          const run = optionalString('runId', runId);
          return core.step(run, string('stepId', stepId), withPayloads(params));
        });
        return decodeWithPayloads(JSON.parse(reply.json), reply, 'input', 'result');
      },
      /** @param {ReadParams & { runId: string }} params */
      async list(params) {
        const reply = await ask((core) =>
          core.steps(string('runId', params?.runId), pageOf(params), withPayloads(params)),
        );
        return page(reply, (item) => decodeWithPayloads(item, reply, 'input', 'result'));
      },
    },
    events: {
      /**
       * @param {string | null} runId
       * @param {Record<string, any>} event
       * @param {{ resolveData?: 'all' | 'none', stateUpdatedAt?: number, occurredAt?: Date }} [params]
       */
      async create(runId, event, params) {
        const all = reading(() => withPayloads(params));
        const eventType = reading(() => event?.eventType);
        return appendOrFail(core, runId, eventType, async () => {
          const request = reading(() => encodeEvent(runId, event, params));
          const reply = await ask((core) => appendReplayed(core, request));
          const answer = JSON.parse(reply.json);
          if (answer.holds) endsHold(core(), answer.runId);
          return eventResult(request, reply, answer, all);
        });
      },
      /** @param {string} runId @param {string} eventId @param {ReadParams} [params] */
      async get(runId, eventId, params) {
        const all = reading(() => withPayloads(params));
        const reply = await ask((core) =>
          core.event(string('runId', runId), string('eventId', eventId), all),
        );
        return eventOf(runId, JSON.parse(reply.json), reply, all);
      },
      /** @param {ReadParams & { runId: string }} params */
      async list(params) {
        const all = reading(() => withPayloads(params));
        const reply = await ask((core) =>
          core.events(string('runId', params?.runId), pageOf(params), all),
        );
        return page(reply, (item, runId) => eventOf(runId, item, reply, all));
      },
      /** @param {ReadParams & { correlationId: string, runId?: string }} params */
      async listByCorrelationId(params) {
        const all = reading(() => withPayloads(params));
        const reply = await ask((core) => {
          const correlationId = string('correlationId', params?.correlationId);
          const runId = optionalString('runId', params.runId);
          return core.eventsByCorrelation(correlationId, runId, pageOf(params), all);
        });
        return page(reply, (item, runId) => eventOf(runId, item, reply, all));
      },
    },
    hooks: {
      /** @param {string} hookId @param {ReadParams} [params] */
      async get(hookId, params) {
        return hook(await ask((core) => core.hook(string('hookId', hookId), withPayloads(params))));
      },
      /** @param {string} token @param {ReadParams} [params] */
      async getByToken(token, params) {
        return hook(
          await ask((core) => core.hookByToken(string('token', token), withPayloads(params))),
        );
      },
      /** @param {ReadParams & { runId?: string }} [params] */
      async list(params) {
        const reply = await ask((core) =>
          core.hooks(optionalString('runId', params?.runId), pageOf(params), withPayloads(params)),
        );
        return page(reply, (item) => decodeWithPayloads(item, reply, 'metadata', ''));
      },
    },
  };
}

/** @param {NodeReply} reply */
function run(reply) {
  return decodeWithPayloads(JSON.parse(reply.json), reply, 'input', 'output');
}

/**
 * The public webhook route resumes hooks unless they say otherwise, as in the official package.
 * @param {NodeReply} reply
 */
function hook(reply) {
  const decoded = decodeWithPayloads(JSON.parse(reply.json), reply, 'metadata', '');
  return { ...decoded, isWebhook: decoded.isWebhook ?? true };
}

/**
 * @param {AppendRequest} request
 * @param {NodeReply} reply
 * @param {any} answer the JSON of the reply
 * @param {boolean} all
 */
function eventResult(request, reply, answer, all) {
  const { runId, event: out, entity: json, input, inputData, log = [] } = answer;
  const events = log.map((/** @type {any} */ item) => eventOf(runId, item, reply, true));
  const event = out && appendedEvent(runId, out, request, all);
  const entity = json && decodeEntity(json);
  const kind = request.eventType.slice(0, request.eventType.indexOf('_'));
  if (kind === 'run' && entity) {
    entity.input = events[0]?.eventData?.input ?? ownPayload(request, 'run_created', 'input');
    entity.output = ownPayload(request, 'run_completed', 'output');
  }
  if (kind === 'step' && entity) {
    entity.input =
      bytesOf(reply, input) ?? inputData?.input ?? ownPayload(request, 'step_created', 'input');
    entity.output = ownPayload(request, 'step_completed', 'result');
  }
  if (kind === 'hook' && entity) {
    entity.metadata = ownPayload(request, 'hook_created', 'metadata');
  }
  return {
    ...(event && { event }),
    ...(entity && { [kind]: entity }),
    ...(events.length > 0 && { events, cursor: events[events.length - 1].eventId, hasMore: false }),
  };
}

/**
 * The event as a later read will give it. What the caller sent did not have to travel back.
 * @param {string} runId
 * @param {import('./events.js').EventOut} out
 * @param {AppendRequest} request
 * @param {boolean} all
 */
function appendedEvent(runId, out, { data, payload }, all) {
  // run_started is stored bare, for what it carried belongs to run_created; a conflict has data of its own.
  if (out.eventType === 'run_started' || out.eventType === 'hook_conflict') {
    return decodeEvent(runId, out, undefined, all);
  }
  return decodeEvent(runId, { ...out, data: data && JSON.parse(data) }, payload, all);
}

/**
 * @param {string} runId
 * @param {import('./events.js').EventOut} out
 * @param {NodeReply} reply
 * @param {boolean} all
 */
function eventOf(runId, out, reply, all) {
  return decodeEvent(runId, out, bytesOf(reply, out.payload), all);
}

/**
 * The payload that this very call carried, if it is of that type.
 * @param {AppendRequest} request
 * @param {string} eventType
 * @param {string} field
 */
function ownPayload(request, eventType, field) {
  if (request.eventType !== eventType) return undefined;
  return request.payload ?? (request.data && JSON.parse(request.data)[field]);
}

/**
 * @param {NodeReply} reply
 * @param {(item: any, runId: string) => any} decode
 */
function page(reply, decode) {
  const { data, cursor, hasMore, runId } = JSON.parse(reply.json);
  return { data: data.map((/** @type {any} */ item) => decode(item, runId)), cursor, hasMore };
}

/** @param {ReadParams} [params] */
function pageOf(params) {
  const { limit, cursor, sortOrder } = params?.pagination ?? {};
  return {
    limit: optionalInteger('pagination.limit', limit),
    // The SDK's CLI passes an empty cursor for the first page.
    cursor: optionalString('pagination.cursor', cursor) || undefined,
    sortOrder: optionalString('pagination.sortOrder', sortOrder),
  };
}

/** @param {{ resolveData?: 'all' | 'none' }} [params] */
function withPayloads(params) {
  return params?.resolveData !== 'none';
}
