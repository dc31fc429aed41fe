// A mask to draw over a picture, with the pointer or the keys; its PNG image, white on black, is the value.
const canvas = element.querySelector("canvas");
const mask = new OffscreenCanvas(canvas.width, canvas.height); // white where it is drawn, else transparent
const [shown, pen] = [canvas.getContext("2d"), mask.getContext("2d")];
const brush = Math.max(4, Math.round(canvas.width / 8)); // pixels
const picture = new Image();
let [x, y] = [canvas.width / 2, canvas.height / 2];
let drawing = false;

function show() {
  shown.drawImage(picture, 0, 0, canvas.width, canvas.height);
  shown.drawImage(mask, 0, 0);
  shown.strokeStyle = "#d55e00"; // the brush
  shown.strokeRect(x - brush / 2, y - brush / 2, brush, brush);
}

function clear() {
  pen.clearRect(0, 0, mask.width, mask.height);
  canvas.dataset.drawn = "no";
  props.value = "";
  show();
}

function paint() {
  pen.fillStyle = "white";
  pen.fillRect(x - brush / 2, y - brush / 2, brush, brush);
  canvas.dataset.drawn = "yes";
}

async function keep() {
  const whole = new OffscreenCanvas(mask.width, mask.height);
  const black = whole.getContext("2d");
  black.fillRect(0, 0, mask.width, mask.height);
  black.drawImage(mask, 0, 0);
  const reader = new FileReader();
  reader.onload = () => (props.value = reader.result);
  reader.readAsDataURL(await whole.convertToBlob());
}

function follow(event) {
  const box = canvas.getBoundingClientRect();
  x = ((event.clientX - box.left) / box.width) * canvas.width;
  y = ((event.clientY - box.top) / box.height) * canvas.height;
}

canvas.addEventListener("pointerdown", (event) => {
  drawing = true;
  canvas.setPointerCapture(event.pointerId);
  follow(event);
  paint();
  show();
});
canvas.addEventListener("pointermove", (event) => {
  follow(event);
  if (drawing) paint();
  show();
});
canvas.addEventListener("pointerup", () => {
  drawing = false;
  keep();
});
canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const move = moves[event.key];
  if (move) {
    x = Math.min(canvas.width, Math.max(0, x + (move[0] * brush) / 2));
    y = Math.min(canvas.height, Math.max(0, y + (move[1] * brush) / 2));
  } else if (event.key === " ") {
    paint();
    keep();
  } else if (event.key === "c" || event.key === "C") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
  show();
});
element.querySelector(".clear").addEventListener("click", clear);
picture.addEventListener("load", show);
watch("picture", () => (picture.src = props.picture));
picture.src = props.picture;
clear();
