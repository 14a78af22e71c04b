// What the page shows of a network's outputs.

const TOP = 5;
// Colours from 0 to the largest value: viridis of matplotlib at five places.
const COLOURS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** The most probable classes, with bars; returns them. */
export function showTop(list, scores, classes) {
  const best = classes
    .map((name, index) => ({ name, score: scores[index] }))
    .sort((one, other) => other.score - one.score)
    .slice(0, TOP);
  list.replaceChildren(
    ...best.map(({ name, score }) => {
      const item = element("li", {}, element("span", { className: "name" }, name));
      item.append(bar(score), element("span", { className: "number" }, percent(score)));
      item.dataset.score = score;
      return item;
    }),
  );
  return best;
}

/** The pictures of all blocks, stage by stage in depth order. `shown`: "states" or "changes". */
export function showBlocks(parent, depth, outputs, shown) {
  parent.replaceChildren(
    ...depth.stages.map((stage, index) => {
      const { data, dims } = outputs[`${stage.name}_${shown}`];
      const [, count, rows, columns] = dims;
      const sizes = outputs[`${stage.name}_sizes`].data;
      const largest = data.reduce((one, other) => Math.max(one, other), 0);
      const picture = (position) => {
        const map = data.subarray(position * rows * columns, (position + 1) * rows * columns);
        return heatMap(map, rows, columns, largest);
      };
      const blocks = element("ol", { className: "blocks" });
      if (count > stage.blocks.length) {
        blocks.append(tile(picture(0), "what enters the stage", "input"));
      }
      stage.blocks.forEach((block, position) => {
        const name = `block ${position + 1}`;
        const what = shown === "states" ? `state after ${name}` : `change by ${name}`;
        const item = tile(picture(position + count - stage.blocks.length), what, name);
        item.append(
          element("span", { className: "hint" }, `particle ${block.particle}`),
          // No line ends between a name and its value.
          element("span", { className: "hint" }, `t\u00a0${fixed(block.time)}, dt\u00a0${fixed(block.step)}`),
          bar(sizes[position]),
          element("span", { className: "number" }, percent(sizes[position])),
        );
        item.dataset.size = sizes[position];
        blocks.append(item);
      });
      const size = `${rows} × ${columns} places, ${stage.channels} channels`;
      const title = element("h3", {}, `Stage ${index + 1}`);
      const hint = `${size}; largest value of a picture: ${fixed(largest)}`;
      return element("section", {}, title, element("p", { className: "hint" }, hint), blocks);
    }),
  );
}

/** Every depth in a row. */
export function showTable(body, depths, count) {
  body.replaceChildren(
    ...depths.map(({ depth, stages, right, bytes }) => {
      const cells = [
        stages.map(({ blocks }) => blocks.length).join(", "),
        percent(1 - right / count),
        `${(bytes / 1e6).toFixed(1)} MB`,
      ].map((text) => element("td", {}, text));
      return element("tr", {}, element("th", { scope: "row" }, String(depth)), ...cells);
    }),
  );
}

/** An element with properties and children. */
export function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const fixed = (value) => value.toFixed(2);

function tile(picture, label, name) {
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", label);
  return element("li", {}, picture, element("b", {}, name));
}

function bar(share) {
  const fill = element("i", {});
  fill.style.width = `${100 * Math.min(1, share)}%`;
  const made = element("span", { className: "bar" }, fill);
  made.setAttribute("aria-hidden", "true");
  return made;
}

function heatMap(values, rows, columns, largest) {
  const made = element("canvas", { width: columns, height: rows });
  const image = new ImageData(columns, rows);
  values.forEach((value, index) => {
    const place = (COLOURS.length - 1) * (largest > 0 ? value / largest : 0);
    const below = Math.min(Math.floor(place), COLOURS.length - 2);
    COLOURS[below].forEach((low, channel) => {
      const high = COLOURS[below + 1][channel];
      image.data[4 * index + channel] = low + (high - low) * (place - below);
    });
    image.data[4 * index + 3] = 255;
  });
  made.getContext("2d").putImageData(image, 0, 0);
  return made;
}
