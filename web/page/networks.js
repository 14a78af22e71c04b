// The networks of the page: what is known of them, and what they compute.

import * as ort from "./ort.wasm.bundle.min.mjs";

// Several threads would need headers that few servers send.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = {
  wasm: new URL("./ort-wasm-simd-threaded.wasm", import.meta.url).href,
};

const sessions = new Map();

/** What `python -m web.build` wrote: titles, classes, sample images, depths. */
export async function describe() {
  const response = await fetch("networks.json");
  if (!response.ok) throw new Error(`networks.json must be there. Received: ${response.status}`);
  return (await response.json()).networks;
}

export function isLoaded(file) {
  return sessions.has(file);
}

/** The outputs of the network in `file` for one image, by name: `{data, dims}`. */
export async function run(file, { pixels, side }) {
  if (!sessions.has(file)) {
    const loading = ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    loading.catch(() => sessions.delete(file)); // to be tried again
    sessions.set(file, loading);
  }
  const session = await sessions.get(file);
  const images = new ort.Tensor("float32", Float32Array.from(pixels), [1, side, side, 3]);
  return session.run({ [session.inputNames[0]]: images });
}
