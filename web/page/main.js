// What is chosen, and what happens when that changes.

import { draw, fromFile, fromSprite } from "./image.js";
import { describe, isLoaded, run } from "./networks.js";
import { element, percent, showBlocks, showTable, showTop } from "./view.js";

const byId = (id) => document.getElementById(id);
const main = document.querySelector("main");

let networks, network, samples, image;
let latest; // the depth whose outputs are shown, and these
let turn = 0; // of the newest run: what older ones find comes too late

async function chooseNetwork(index) {
  const { images, depths, classes, statistics } = networks[index];
  const count = images.labels.length;
  samples = await fromSprite(images.file, count, images.columns, images.side);
  network = networks[index];
  byId("samples").querySelector("div").replaceChildren(
    ...samples.map((pixels, number) => {
      const label = `image ${number + 1}, ${classes[images.labels[number]]}`;
      const input = element("input", { type: "radio", name: "sample", value: number });
      input.setAttribute("aria-label", label);
      const picture = element("canvas", { width: images.side, height: images.side });
      draw(picture, pixels);
      return element("label", { title: label }, input, picture);
    }),
  );
  const trained = depths.findIndex((one) => one.trained);
  Object.assign(byId("depth"), { max: depths.length - 1, value: Math.max(0, trained) });
  byId("depths").replaceChildren(...depths.map(({ depth }) => element("span", {}, String(depth))));
  showTable(byId("table"), depths, count);
  byId("statistics").textContent =
    "The trained network has depth " +
    `${depths.filter((one) => one.trained).map((one) => one.depth)}. ` +
    "The others have the same weights, refined or coarsened, and were not trained. Their " +
    `statistics of BatchNormalization were estimated on ${statistics}, cropped and flipped as in ` +
    `training. Errors are those on the ${count} test images of this page.`;
  byId("samples").querySelector("input").checked = true;
  await chooseSample(0);
}

function chooseSample(number) {
  const { classes, images } = network;
  const truth = classes[images.labels[number]];
  const name = `test image ${number + 1}: ${truth}`;
  return chooseImage({ pixels: samples[number], side: images.side, name, truth });
}

async function chooseFile(file) {
  if (!file) return;
  const { side } = network.images;
  try {
    const pixels = await fromFile(file, side);
    document.querySelectorAll("[name=sample]").forEach((input) => (input.checked = false));
    await chooseImage({ pixels, side, name: file.name });
  } catch (error) {
    fail(error);
  }
}

function chooseImage(chosen) {
  image = chosen;
  draw(byId("image"), image.pixels);
  byId("image").setAttribute("aria-label", image.name);
  byId("chosen").textContent = image.name;
  return update();
}

async function update() {
  const mine = ++turn;
  const depth = network.depths[byId("depth").value];
  const count = network.images.labels.length;
  byId("depth-value").textContent = depth.depth;
  byId("depth").setAttribute("aria-valuetext", `depth ${depth.depth}`);
  byId("depth-error").textContent =
    `${depth.trained ? "As trained" : "Not trained at this depth"}: ` +
    `${count - depth.right} of the ${count} test images wrong (${percent(1 - depth.right / count)}).`;
  main.setAttribute("aria-busy", "true");
  if (!isLoaded(depth.file)) {
    const size = `${(depth.bytes / 1e6).toFixed(1)} MB`;
    byId("status").textContent = `Loading the network of depth ${depth.depth} (${size}) ...`;
  }
  try {
    const outputs = await run(depth.file, image);
    if (mine !== turn) return;
    latest = { depth, outputs };
    const [best] = showTop(byId("top"), outputs.scores.data, network.classes);
    show();
    const verdict = image.truth ? (image.truth === best.name ? " (right)" : " (wrong)") : "";
    byId("status").textContent = `At depth ${depth.depth}: ${best.name}, ${percent(best.score)}${verdict}`;
  } catch (error) {
    if (mine === turn) fail(error);
  }
  if (mine === turn) main.setAttribute("aria-busy", "false");
}

function fail(error) {
  byId("status").textContent = `This did not work. ${error.message}`;
}

function show() {
  const shown = document.querySelector("[name=shown]:checked").value;
  if (latest) showBlocks(byId("stages"), latest.depth, latest.outputs, shown);
}

function listen() {
  byId("network").addEventListener("change", (event) =>
    chooseNetwork(event.target.value).catch(fail),
  );
  byId("samples").addEventListener("change", (event) => chooseSample(Number(event.target.value)));
  byId("file").addEventListener("change", (event) => chooseFile(event.target.files[0]));
  byId("depth").addEventListener("input", update);
  byId("shown").addEventListener("change", show);
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    chooseFile(event.dataTransfer.files[0]);
  });
}

try {
  networks = await describe();
  byId("network").append(
    ...networks.map(({ title }, index) => element("option", { value: index }, title)),
  );
  byId("network").hidden = byId("network-label").hidden = networks.length < 2;
  await chooseNetwork(0);
  listen();
} catch (error) {
  fail(error);
}
