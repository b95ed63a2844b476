/** @typedef {ReturnType<typeof generator>} Random */

/**
 * Numbers that are the same for the same seed (mulberry32).
 *
 * @param {number} seed
 */
export function generator(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  /** @param {number} least @param {number} most both possible */
  const between = (least, most) => least + Math.floor(next() * (most - least + 1));
  /** @template T @param {readonly T[]} values @returns {T} */
  const one = (values) => values[between(0, values.length - 1)];

  /** Each value once, in any order, then again: none is missing for long. @template T @param {readonly T[]} values @returns {() => T} */
  const deck = (values) => {
    /** @type {T[]} */
    let rest = [];
    return () => {
      if (rest.length === 0) rest = [...values];
      return rest.splice(between(0, rest.length - 1), 1)[0];
    };
  };
  return { between, one, deck };
}

/** Milliseconds on a clock that all processes of the machine share and nobody can set. */
export const moment = () => Number(process.hrtime.bigint() / 1_000_000n);
