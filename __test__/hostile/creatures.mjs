import fc from 'fast-check';

/** @param {number} levels */
function deep(levels) {
  /** @type {any} */
  let value = 1;
  for (let level = 0; level < levels; level += 1) value = { a: value };
  return value;
}

function cyclic() {
  /** @type {any} */
  const value = { a: 1 };
  value.self = value;
  return value;
}

function detached() {
  const bytes = new Uint8Array([1, 2, 3]);
  structuredClone(bytes, { transfer: [bytes.buffer] });
  return bytes;
}

function shared() {
  const bytes = new Uint8Array(new SharedArrayBuffer(3));
  bytes.set([1, 2, 3]);
  return bytes;
}

/** @returns {never} */
function fail() {
  throw new RangeError('a trap');
}

const traps = Object.fromEntries(Object.getOwnPropertyNames(Reflect).map((name) => [name, fail]));

/**
 * What no generator comes up with, made anew for each use.
 * @type {Record<string, () => unknown>}
 */
const CREATURES = {
  undefined: () => undefined,
  null: () => null,
  true: () => true,
  NaN: () => Number.NaN,
  'minus zero': () => -0,
  infinity: () => Number.POSITIVE_INFINITY,
  'minus infinity': () => Number.NEGATIVE_INFINITY,
  half: () => 0.5,
  'minus one': () => -1,
  '2^31': () => 2 ** 31,
  '2^32': () => 2 ** 32,
  '2^53': () => 2 ** 53,
  '-2^53': () => -(2 ** 53),
  '2^63': () => 2 ** 63,
  'the largest number': () => Number.MAX_VALUE,
  'the smallest number': () => Number.MIN_VALUE,
  bigint: () => 2n ** 64n,
  symbol: () => Symbol('s'),
  function: () => () => 'a',
  class: () => class A {},
  'empty text': () => '',
  blank: () => ' ',
  NUL: () => 'a\0b',
  'high surrogate': () => 'a\ud83d',
  'low surrogate': () => '\udc00b',
  'not a character': () => '\uffff\ufffe',
  'combining characters': () => 'a\u0301\u202e\u{1f468}\u200d\u{1f469}',
  'line breaks': () => 'a\r\nb\u2028c',
  quotes: () => `'; DROP TABLE workflow_events; -- " $1 $$ \\ %s {}`,
  wildcards: () => '%_\\',
  '__proto__ in JSON': () => JSON.parse('{"__proto__": {"polluted": true}}'),
  '2,000 characters': () => 'x'.repeat(2000),
  '2,001 characters': () => 'x'.repeat(2001),
  '2,000 wide characters': () => '\u{1f600}'.repeat(1000),
  '1 MB of text': () => 'x'.repeat(2 ** 20),
  'no date': () => new Date(Number.NaN),
  'the first date': () => new Date(-8.64e15),
  'the last date': () => new Date(8.64e15),
  'the year 0': () => new Date('0000-01-01T00:00:00Z'),
  'the year 9999': () => new Date('9999-12-31T23:59:59.999Z'),
  'date before 1970': () => new Date(-1),
  'text of a date': () => '2026-11-21T00:00:00.123Z',
  'no object at all': () => Object.create(null),
  'empty list': () => [],
  'list with holes': () => new Array(5),
  'deep JSON': () => deep(10_000),
  'nested 100 times': () => deep(100),
  cyclic,
  promise: () => Promise.resolve('a'),
  map: () => new Map([['a', 1]]),
  error: () => new Error('an error'),
  'regular expression': () => /a/g,
  'boxed text': () => Object('a'),
  'boxed number': () => Object(1),
  'throwing getter': () => Object.defineProperty({}, 'a', { enumerable: true, get: fail }),
  'throwing toJSON': () => ({ toJSON: fail }),
  'throwing toString': () => ({ toString: fail, valueOf: fail, [Symbol.toPrimitive]: fail }),
  'toJSON to nothing': () => ({ toJSON: () => undefined }),
  'toJSON to text': () => ({ toJSON: () => 'a' }),
  'throwing proxy': () => new Proxy({}, traps),
  'throwing callable': () => new Proxy(() => {}, traps),
  'revoked proxy': () => {
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    return proxy;
  },
  'proxy of bytes': () => new Proxy(new Uint8Array([1, 2, 3]), {}),
  'no bytes': () => new Uint8Array(),
  bytes: () => new Uint8Array([0, 255, 128]),
  'middle of a buffer': () => new Uint8Array([1, 2, 3, 4]).subarray(1, 3),
  buffer: () => Buffer.from('bytes'),
  '1 MB of bytes': () => new Uint8Array(2 ** 20).fill(7),
  detached,
  shared,
  resizable: () =>
    // @ts-expect-error not in the library of ES2023
    new Uint8Array(new ArrayBuffer(3, { maxByteLength: 8 })),
  'words, not bytes': () => new Uint16Array([1, 2]),
  'a view that says it is bytes': () =>
    Object.defineProperty(new Float64Array(2), Symbol.toStringTag, { value: 'Uint8Array' }),
  'something that inherits from bytes': () => Object.create(new Uint8Array([1, 2, 3])),
  'buffer alone': () => new ArrayBuffer(3),
  view: () => new DataView(new ArrayBuffer(3)),
};

/** A hostile value. Named where it could not be printed. */
export class Creature {
  /**
   * @param {string | undefined} name
   * @param {() => unknown} make
   */
  constructor(name, make) {
    this.make = make;
    this.name = name;
  }

  toString() {
    return this.name ?? fc.stringify(this.make());
  }

  [fc.toStringMethod]() {
    return `<${this}>`;
  }
}

export const creature = fc.oneof(
  {
    weight: 3,
    arbitrary: fc
      .constantFrom(...Object.keys(CREATURES))
      .map((name) => new Creature(name, CREATURES[name])),
  },
  {
    weight: 1,
    arbitrary: fc
      .anything({
        withBigInt: true,
        withBoxedValues: true,
        withDate: true,
        withMap: true,
        withNullPrototype: true,
        withSet: true,
        withSparseArray: true,
        withTypedArray: true,
        stringUnit: 'binary',
      })
      .map((value) => new Creature(undefined, () => value)),
  },
  {
    weight: 1,
    arbitrary: fc.string({ unit: 'binary' }).map((text) => new Creature(undefined, () => text)),
  },
);

/** @typedef {{ at: number, creature: Creature }} Change */

/** One or two places of the arguments, and what is put there. */
export const changes = fc.array(fc.record({ at: fc.nat(10_000), creature }), {
  minLength: 1,
  maxLength: 2,
});

/**
 * The arguments with something hostile in their place, or in that of any of their fields.
 * @param {unknown[]} args
 * @param {Change[]} changes
 */
export function changed(args, changes) {
  const places = placesOf(args);
  const chosen = changes.map(({ at, creature }) => ({
    path: places[at % places.length],
    creature,
  }));
  // From the inside out: what is put in the place of the whole takes its fields with it.
  chosen.sort((a, b) => b.path.length - a.path.length);
  return /** @type {unknown[]} */ (
    chosen.reduce(
      (/** @type {unknown} */ tree, { path, creature }) => put(tree, path, creature.make()),
      args,
    )
  );
}

/** @param {any} tree @returns {boolean} */
function isTree(tree) {
  return Array.isArray(tree) || tree?.constructor === Object;
}

/** @param {any} tree @param {string[]} [path] @returns {string[][]} */
function placesOf(tree, path = []) {
  if (!isTree(tree)) return [path];
  const inside = Object.entries(tree).flatMap(([name, value]) => placesOf(value, [...path, name]));
  return path.length === 0 ? inside : [path, ...inside];
}

/** @param {any} tree @param {string[]} path @param {unknown} value @returns {unknown} */
function put(tree, [name, ...rest], value) {
  const copy = Array.isArray(tree) ? [...tree] : { ...tree };
  copy[name] = rest.length === 0 ? value : put(copy[name], rest, value);
  return copy;
}
