/** @type {Set<() => void>} */
const tasks = new Set();

/**
 * Runs a task when the process ends in order. One listener serves all: Node warns of many.
 * @param {() => void} task
 */
export function addExitTask(task) {
  if (tasks.size === 0) process.on('exit', runTasks);
  tasks.add(task);
}

/** @param {() => void} task */
export function removeExitTask(task) {
  tasks.delete(task);
  if (tasks.size === 0) process.off('exit', runTasks);
}

function runTasks() {
  for (const task of tasks) task();
}
