// SPDX-License-Identifier: GPL-2.0-only
const { Worker, isMainThread, workerData } = require('worker_threads');
if (isMainThread) {
  for (let i = 0; i < 3; i++) new Worker(__filename, { workerData: i });
} else {
  let keep = [];
  for (let i = 0; i < 300; i++) {
    keep.push(Buffer.alloc(65536 * (1 + workerData)), new Array(2000).fill(i).map(x => 'v' + x));
    if (keep.length > 40) keep = keep.slice(20);
  }
}
