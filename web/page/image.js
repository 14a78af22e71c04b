// Images as the networks take them: RGB, `side` pixels high and wide.
// As mf_zoo.data.read_image does: transparent parts on white, the middle cut out, and scaled by
// the antialiased bicubic filter of Pillow, which the scaling of a canvas is not.

const LARGEST = 2048; // pixels of a side; larger images are first scaled by the canvas

/** The pixels of a file that somebody chose. */
export async function fromFile(file, side) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`The file must be an image that your browser reads. Received: ${file.name}`);
  }
  const shrink = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * shrink));
  const height = Math.max(1, Math.round(bitmap.height * shrink));
  const context = canvas(width, height);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  return fitted(rgb(context, 0, 0, width, height), width, height, side);
}

/** The pixels of all images of a picture that holds them in rows. */
export async function fromSprite(address, count, columns, side) {
  const content = await (await fetch(address)).blob();
  const bitmap = await createImageBitmap(content, { colorSpaceConversion: "none" });
  const context = canvas(bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return Array.from({ length: count }, (_, index) =>
    rgb(context, (index % columns) * side, Math.floor(index / columns) * side, side, side),
  );
}

/** Draws pixels on a canvas element of the same size. */
export function draw(element, pixels) {
  const image = new ImageData(element.width, element.height);
  for (let i = 0; i < pixels.length; i++) {
    image.data[i + Math.floor(i / 3)] = pixels[i];
    image.data[4 * Math.floor(i / 3) + 3] = 255;
  }
  element.getContext("2d").putImageData(image, 0, 0);
}

function canvas(width, height) {
  const element = document.createElement("canvas");
  Object.assign(element, { width, height });
  return element.getContext("2d", { willReadFrequently: true });
}

function rgb(context, x, y, width, height) {
  return context.getImageData(x, y, width, height).data.filter((_, index) => index % 4 !== 3);
}

function fitted(pixels, width, height, side) {
  if (width === side && height === side) return pixels;
  const cut = Math.min(width, height);
  const across = weights(width, (width - cut) / 2, cut, side);
  const down = weights(height, (height - cut) / 2, cut, side);
  const rows = new Uint8ClampedArray(height * side * 3);
  for (let y = 0; y < height; y++) {
    across.forEach(({ first, values }, x) => {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0;
        values.forEach((value, k) => (sum += value * pixels[3 * (y * width + first + k) + channel]));
        rows[3 * (y * side + x) + channel] = sum;
      }
    });
  }
  const result = new Uint8ClampedArray(side * side * 3);
  down.forEach(({ first, values }, y) => {
    for (let i = 0; i < 3 * side; i++) {
      let sum = 0;
      values.forEach((value, k) => (sum += value * rows[3 * side * (first + k) + i]));
      result[3 * side * y + i] = sum;
    }
  });
  return result;
}

/** For each pixel of the result: the first pixel that it is made of, and the weights of all. */
function weights(size, start, length, side) {
  const scale = length / side;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: side }, (_, index) => {
    const center = start + (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - 2 * stretch + 0.5));
    const end = Math.min(size, Math.trunc(center + 2 * stretch + 0.5));
    const values = Array.from({ length: end - first }, (_, k) =>
      cubic((first + k - center + 0.5) / stretch),
    );
    const total = values.reduce((sum, value) => sum + value, 0);
    return { first, values: values.map((value) => value / total) };
  });
}

/** Keys' cubic kernel with a = -1/2. */
function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}
