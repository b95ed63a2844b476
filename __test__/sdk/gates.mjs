// More methods for the app's server (TEST_METHODS): events of a type can be stopped on their way to the World.
import { getWorld } from '@workflow/core/runtime';

export function createMethods() {
  /** @type {Map<string, { arrived: boolean, open: () => void, opened: Promise<void> }>} */
  const gates = new Map();
  const { events } = getWorld();
  const { create } = events;
  events.create = /** @type {typeof create} */ (
    async (/** @type {any[]} */ ...args) => {
      const gate = gates.get(args[1].eventType);
      if (gate) {
        gate.arrived = true;
        await gate.opened;
      }
      return /** @type {any} */ (create)(...args);
    }
  );

  return {
    /** @param {string} eventType */
    closeGate(eventType) {
      let open = () => {};
      /** @type {Promise<void>} */
      const opened = new Promise((resolve) => {
        open = resolve;
      });
      gates.set(eventType, { arrived: false, open, opened });
    },
    /** @param {string} eventType */
    waitsAtGate: (eventType) => gates.get(eventType)?.arrived,
    /** @param {string} eventType */
    openGate(eventType) {
      gates.get(eventType)?.open();
      gates.delete(eventType);
    },
  };
}
