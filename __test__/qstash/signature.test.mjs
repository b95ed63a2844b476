// What counts as a delivery of QStash. The official Receiver is the judge: ours never lets in what it
// refuses, and where ours is stricter, the table says why.
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { describe, test } from 'node:test';
import { Receiver } from '@upstash/qstash';
import { claimsOf, sign } from '../../scripts/support/qstash.mjs';
import { createPostgresUpstashWorld } from '../../upstash.js';
import { envelope, NOWHERE, ROUTES } from './fixture.mjs';

const CURRENT = 'sig_current';
const NEXT = 'sig_next';
const URL = `${ROUTES}/step`;
const BODY = envelope('{"stepId": "step_1", "text": "ä"}');
/** Of clocks; ours is fixed. */
const TOLERANCE_SECONDS = 10;

const base64url = (/** @type {string} */ text) => Buffer.from(text).toString('base64url');

/**
 * A signature by QStash's rules, but for what is given.
 *
 * @param {object} [options]
 * @param {string} [options.key]
 * @param {Record<string, unknown>} [options.claims] undefined: without it
 * @param {unknown} [options.header]
 * @param {string} [options.hash] that signs
 * @param {string} [options.body]
 * @param {string} [options.payload] as text, instead of the claims
 */
function token({ key = CURRENT, claims, header, hash = 'sha256', body = BODY, payload } = {}) {
  const head = base64url(JSON.stringify(header ?? { alg: 'HS256', typ: 'JWT' }));
  const text = payload ?? JSON.stringify({ ...claimsOf(URL, Buffer.from(body)), ...claims });
  const signed = `${head}.${base64url(text)}`;
  return `${signed}.${createHmac(hash, key).update(signed).digest('base64url')}`;
}

const good = token();
const [head, payload, signature] = good.split('.');
/** Signs any two parts, however they are spelt. @param {string} signed */
const signParts = (signed) =>
  `${signed}.${createHmac('sha256', CURRENT).update(signed).digest('base64url')}`;
/** Standard base64, the parts of which differ from base64url. */
const slashes = token({ claims: { jti: '???>>>~~~ÿÿÿ' } });
const standard = (/** @type {string} */ text) => text.replaceAll('-', '+').replaceAll('_', '/');
/** A signature that has such a character. */
let withSymbols = good;
while (!/[-_][^.]*$/.test(withSymbols)) withSymbols = token();
const bodyHash = claimsOf(URL, Buffer.from(BODY)).body;
const { body: _body, ...claimsWithoutBody } = claimsOf(URL, Buffer.from(BODY));

/**
 * `stricter`: refused by us alone, and why.
 * @typedef {{ token: string, body?: string, accepted?: boolean, stricter?: string }} Case
 */

/** Made anew for each test: they age. @returns {Record<string, Case>} */
const cases = (now = Math.floor(Date.now() / 1000)) => ({
  'as it should be': { token: good, accepted: true },
  'as the stand-in signs': {
    token: sign(CURRENT, claimsOf(URL, Buffer.from(BODY))),
    accepted: true,
  },
  'signed with the next key': { token: token({ key: NEXT }), accepted: true },
  'signed with an older key': { token: token({ key: 'sig_older' }) },
  'signed with an empty key': { token: token({ key: 'x' }) },
  'signed with the key in other letters': { token: token({ key: CURRENT.toUpperCase() }) },
  'signed with the key and a newline': { token: token({ key: `${CURRENT}\n` }) },

  'algorithm none, unsigned': { token: `${base64url('{"alg":"none"}')}.${payload}.` },
  'algorithm none, signed': { token: token({ header: { alg: 'none', typ: 'JWT' } }) },
  'algorithm NONE, unsigned': { token: `${base64url('{"alg":"NONE"}')}.${payload}.` },
  'algorithm hs256': { token: token({ header: { alg: 'hs256', typ: 'JWT' } }) },
  'algorithm HS384, which it is': {
    token: token({ header: { alg: 'HS384' }, hash: 'sha384' }),
    stricter: 'QStash signs with HS256, and nothing else is needed',
  },
  'algorithm HS512, which it is': {
    token: token({ header: { alg: 'HS512' }, hash: 'sha512' }),
    stricter: 'QStash signs with HS256, and nothing else is needed',
  },
  'algorithm HS512, signed by HS256': { token: token({ header: { alg: 'HS512' } }) },
  'algorithm HS256, signed by HS512': { token: token({ hash: 'sha512' }) },
  'algorithm RS256': { token: token({ header: { alg: 'RS256' } }) },
  'no algorithm': { token: token({ header: { typ: 'JWT' } }) },
  'algorithm null': { token: token({ header: { alg: null } }) },
  'a list of algorithms': { token: token({ header: { alg: ['HS256'] } }) },
  'a header that is a list': { token: token({ header: ['HS256'] }) },
  'a header without a type': { token: token({ header: { alg: 'HS256' } }), accepted: true },
  'a header with an unknown member': {
    token: token({ header: { alg: 'HS256', kid: '../../etc/passwd' } }),
    accepted: true,
  },
  'a header with an extension that must be understood': {
    token: token({ header: { alg: 'HS256', crit: ['exp'], exp: 1 } }),
  },
  'a header with crit of nothing': { token: token({ header: { alg: 'HS256', crit: [] } }) },
  'a header that says that the payload is not encoded': {
    token: token({ header: { alg: 'HS256', b64: false, crit: ['b64'] } }),
  },
  'the header of another token': {
    token: `${base64url('{"alg":"HS256"}')}.${payload}.${signature}`,
  },

  'another issuer': { token: token({ claims: { iss: 'Someone' } }) },
  'another issuer, by its letters': { token: token({ claims: { iss: 'upstash' } }) },
  'a list of issuers': { token: token({ claims: { iss: ['Upstash'] } }) },
  'no issuer': { token: token({ claims: { iss: undefined } }) },
  'no subject': { token: token({ claims: { sub: undefined } }) },
  'no body hash': { token: token({ claims: { body: undefined } }) },
  'a body hash that is null': { token: token({ claims: { body: null } }) },
  'an empty body hash': { token: token({ claims: { body: '' } }) },
  'no end': {
    token: token({ claims: { exp: undefined } }),
    stricter: 'a signature that never ends is none of QStash, and could be replayed for ever',
  },
  'no beginning': { token: token({ claims: { nbf: undefined } }), accepted: true },
  'no id': { token: token({ claims: { jti: undefined } }), accepted: true },
  'no time of issue': { token: token({ claims: { iat: undefined } }), accepted: true },

  'ended just within the tolerance': {
    token: token({ claims: { exp: now - TOLERANCE_SECONDS + 5 } }),
    accepted: true,
  },
  'ended just outside the tolerance': {
    token: token({ claims: { exp: now - TOLERANCE_SECONDS - 1 } }),
  },
  'ended long ago': { token: token({ claims: { exp: 0 } }) },
  'ended before it began to count': { token: token({ claims: { exp: -1 } }) },
  'begins just within the tolerance': {
    token: token({ claims: { nbf: now + TOLERANCE_SECONDS } }),
    accepted: true,
  },
  'begins later': { token: token({ claims: { nbf: now + 3600 } }) },
  'an end that is text': { token: token({ claims: { exp: `${now + 300}` } }) },
  'an end that is text of an hour': { token: token({ claims: { exp: '1h' } }) },
  'an end that is null': { token: token({ claims: { exp: null } }) },
  'a beginning that is text': { token: token({ claims: { nbf: `${now}` } }) },
  'an end with a fraction': {
    token: token({ claims: { exp: now + 300.5 } }),
    stricter: 'QStash counts whole seconds',
  },
  'an end far away': { token: token({ claims: { exp: 2 ** 53 } }), accepted: true },
  'an end beyond every clock': {
    token: token({
      payload: JSON.stringify(claimsOf(URL, Buffer.from(BODY))).replace(/"exp":\d+/, '"exp":1e400'),
    }),
    stricter: 'no number, by JSON in Rust',
  },

  'for another URL': { token: token({ claims: { sub: `${ROUTES}/flow` } }) },
  'for the same URL by http': { token: token({ claims: { sub: URL.replace('https', 'http') } }) },
  'for the URL with a slash': { token: token({ claims: { sub: `${URL}/` } }) },
  'for the URL with a query': { token: token({ claims: { sub: `${URL}?` } }) },
  'for the URL with its port': {
    token: token({ claims: { sub: URL.replace('app.example', 'app.example:443') } }),
  },
  'for the URL in other letters': { token: token({ claims: { sub: URL.toUpperCase() } }) },
  'for the host that the request names': {
    token: token({ claims: { sub: URL.replace('https://app.example', 'http://127.0.0.1') } }),
  },
  'for a list of URLs': { token: token({ claims: { sub: [URL] } }) },

  'another body': { token: good, body: BODY.replace('step_1', 'step_2') },
  'the body serialised anew': { token: good, body: JSON.stringify(JSON.parse(BODY)) },
  'the body with a newline': { token: good, body: `${BODY}\n` },
  'the body with a byte order mark': { token: good, body: `\ufeff${BODY}` },
  'the body in another normal form': { token: good, body: BODY.normalize('NFD') },
  'no body': { token: good, body: '' },
  'a body hash without padding': {
    token: token({ claims: { body: bodyHash.replace('=', '') } }),
    accepted: true,
  },
  'a body hash with more padding': {
    token: token({ claims: { body: `${bodyHash}==` } }),
    accepted: true,
  },
  'a body hash with padding in front': { token: token({ claims: { body: `=${bodyHash}` } }) },
  'a body hash in hexadecimal': {
    token: token({ claims: { body: Buffer.from(bodyHash, 'base64url').toString('hex') } }),
  },
  'a body hash with a space': { token: token({ claims: { body: `${bodyHash} ` } }) },
  'a body hash cut off': { token: token({ claims: { body: bodyHash.slice(0, -2) } }) },

  'a signature cut off': { token: good.slice(0, -1) },
  'half a signature': { token: good.slice(0, -22) },
  'an empty signature': { token: `${head}.${payload}.` },
  'no signature': { token: `${head}.${payload}` },
  'a longer signature': { token: `${good}AAAA` },
  'a signature with another last bit': {
    token: good.replace(/.$/, (last) => (last === 'A' ? 'Q' : 'A')),
  },
  'a dot more': { token: `${good}.` },
  'a dot in front': { token: `.${good}` },
  'four parts': { token: `${head}.${head}.${payload}.${signature}` },
  'five parts, as if encrypted': { token: `${good}.${head}.${payload}` },
  'another payload': {
    token: `${head}.${base64url(JSON.stringify({ ...claimsOf(URL, Buffer.from(BODY)) }))}.${signature}`,
  },
  'parts in another order': { token: `${payload}.${head}.${signature}` },
  'a word': { token: 'signature' },
  'a scheme in front': { token: `Bearer ${good}` },
  'two signatures in a list': { token: `${good}, ${good}` },
  'quotes around it': { token: `"${good}"` },
  'a signature with padding': {
    token: `${good}=`,
    stricter: 'one spelling per signature; a JWT has no padding',
  },
  'a payload with padding, signed so': {
    token: signParts(`${head}.${payload}==`),
    stricter: 'one spelling per signature; a JWT has no padding',
  },
  'a payload in standard base64, signed so': {
    token: signParts(`${slashes.split('.')[0]}.${standard(slashes.split('.')[1])}`),
    stricter: 'one spelling per signature; a JWT is base64url',
  },
  'a signature in standard base64': {
    token: withSymbols.replace(/[^.]*$/, standard),
    stricter: 'one spelling per signature; a JWT is base64url',
  },
  'a payload that is no JSON': { token: token({ payload: 'claims' }) },
  'a payload that is a list': { token: token({ payload: '[]' }) },
  'claims in a list, in our order': {
    token: token({ payload: JSON.stringify(['Upstash', URL, now + 300, now, bodyHash]) }),
  },
  'a payload that is null': { token: token({ payload: 'null' }) },
  'an empty payload': { token: signParts(`${head}.`) },
  'a payload with a second subject, last': {
    token: token({
      payload: `${JSON.stringify(claimsOf(URL, Buffer.from(BODY))).slice(0, -1)},"sub":"${URL}x"}`,
    }),
  },
  'a payload with a second subject, first': {
    token: token({
      payload: `{"sub":"${URL}x",${JSON.stringify(claimsOf(URL, Buffer.from(BODY))).slice(1)}`,
    }),
    stricter: 'a claim that is made twice means one of two things',
  },
  'claims about more than is known': {
    token: token({ claims: { scope: { deep: [1, null] }, note: '名前 😀' } }),
    accepted: true,
  },
  'a token of 100 kB': {
    token: token({ claims: { filler: 'x'.repeat(100_000) } }),
    accepted: true,
  },
  'claims that nobody signed': {
    token: `${head}.${base64url(JSON.stringify({ ...claimsWithoutBody, body: bodyHash }))}.AAAA`,
  },
});

/**
 * Delivers to a World, and asks the Receiver.
 *
 * @param {Case} options
 * @param {{ current: string, next?: string }} [keys]
 */
async function verdicts({ token: signed, body = BODY }, keys = { current: CURRENT, next: NEXT }) {
  const { current, next } = keys;
  let executed = false;
  const world = createPostgresUpstashWorld({
    databaseUrl: NOWHERE,
    qstash: {
      token: 'token',
      targetUrl: 'https://app.example',
      currentSigningKey: current,
      nextSigningKey: next,
    },
  });
  const handle = world.createQueueHandler('__wkf_step_', async () => {
    executed = true;
  });
  const response = await handle(
    new Request('http://127.0.0.1:3000/.well-known/workflow/v1/step', {
      method: 'POST',
      headers: { 'upstash-signature': signed },
      body,
    }),
  );
  assert.equal(response.status, executed ? 200 : 401);
  const receiver = new Receiver({ currentSigningKey: current, nextSigningKey: next ?? current });
  const theirs = await receiver
    .verify({ signature: signed, body, url: URL, clockTolerance: TOLERANCE_SECONDS })
    .catch(() => false);
  return { ours: executed, theirs };
}

describe('a signature', () => {
  for (const [name, example] of Object.entries(cases())) {
    const { accepted = false, stricter } = example;
    const title = stricter
      ? `(${name}) is refused: ${stricter}`
      : `(${name}) is ${accepted ? 'accepted' : 'refused'}`;
    test(title, async () => {
      assert.deepEqual(await verdicts(cases()[name]), {
        ours: accepted,
        theirs: accepted || stricter !== undefined,
      });
    });
  }
});

describe('signing keys', () => {
  test('rotate: the next one counts before and after it becomes the current one', async () => {
    const keys = ['sig_1', 'sig_2', 'sig_3'];
    for (const [index, expected] of [true, true, false].entries()) {
      const example = { token: token({ key: keys[index] }) };
      const found = await verdicts(example, { current: keys[0], next: keys[1] });
      assert.deepEqual(found, { ours: expected, theirs: expected }, keys[index]);
    }
    for (const [index, expected] of [false, true, true].entries()) {
      const example = { token: token({ key: keys[index] }) };
      const found = await verdicts(example, { current: keys[1], next: keys[2] });
      assert.deepEqual(found, { ours: expected, theirs: expected }, keys[index]);
    }
  });

  test('may lack the next one', async () => {
    assert.equal((await verdicts(cases()['as it should be'], { current: CURRENT })).ours, true);
    assert.equal(
      (await verdicts({ token: token({ key: NEXT }) }, { current: CURRENT })).ours,
      false,
    );
    assert.equal(
      (await verdicts({ token: token({ key: 'undefined' }) }, { current: CURRENT })).ours,
      false,
    );
  });
});
