/** @typedef {(retried: number) => number} Expression */

/** @type {Map<string, (...args: number[]) => number>} */
const FUNCTIONS = new Map(
  /** @type {const} */ (['pow', 'exp', 'sqrt', 'abs', 'floor', 'ceil', 'round', 'min', 'max']).map(
    (name) => [name, Math[name]],
  ),
);
/** @type {Map<string, { precedence: number, apply: (a: number, b: number) => number }>} */
const OPERATORS = new Map([
  ['+', { precedence: 1, apply: (a, b) => a + b }],
  ['-', { precedence: 1, apply: (a, b) => a - b }],
  ['*', { precedence: 2, apply: (a, b) => a * b }],
  ['/', { precedence: 2, apply: (a, b) => a / b }],
]);

/**
 * The expressions of `Upstash-Retry-Delay`: numbers, `retried`, the four operations, functions.
 *
 * @param {string} text
 * @returns {Expression}
 */
export function compileExpression(text) {
  const tokens = text.match(/\d+(\.\d+)?|[a-z]+|\S/g) ?? [];
  let at = 0;
  const expect = (/** @type {string} */ token) => {
    if (tokens[at] !== token) throw new Error(`${token} expected instead of ${tokens[at]}`);
    at += 1;
  };

  /** @returns {Expression} */
  function operand() {
    const token = tokens[at] ?? '';
    at += 1;
    if (/^\d/.test(token)) return () => Number(token);
    if (token === 'retried') return (retried) => retried;
    if (token === '-') {
      const negated = operand();
      return (retried) => -negated(retried);
    }
    if (token === '(') {
      const inner = operation(1);
      expect(')');
      return inner;
    }
    const apply = FUNCTIONS.get(token);
    if (!apply) throw new Error(`${token} is not known`);
    expect('(');
    const args = [operation(1)];
    while (tokens[at] === ',') {
      at += 1;
      args.push(operation(1));
    }
    expect(')');
    return (retried) => apply(...args.map((arg) => arg(retried)));
  }

  /** @param {number} precedence at least @returns {Expression} */
  function operation(precedence) {
    let left = operand();
    for (;;) {
      const operator = OPERATORS.get(tokens[at]);
      if (!operator || operator.precedence < precedence) return left;
      at += 1;
      const [first, second] = [left, operation(operator.precedence + 1)];
      left = (retried) => operator.apply(first(retried), second(retried));
    }
  }

  const expression = operation(1);
  if (at < tokens.length) throw new Error(`${tokens[at]} is not expected`);
  return expression;
}
