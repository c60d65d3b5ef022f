// "Add a folder": the pictures in a folder of the reader's choice, sub-folders too, as if they had been dropped one by one.
() => {
  const input = document.querySelector("#folder-input") ?? document.body.appendChild(document.createElement("input"));
  Object.assign(input, { type: "file", id: "folder-input", hidden: true, webkitdirectory: true, value: "" });
  input.onchange = () => {
    const chosen = new DataTransfer(), entrance = document.querySelector("#files input[type=file]");
    for (const file of input.files) {
      if (/^[^.].*\.(png|jpe?g|webp|tiff?|bmp)$/i.test(file.name)) chosen.items.add(file);
    }
    entrance.files = chosen.files;
    entrance.dispatchEvent(new Event("change", { bubbles: true }));
  };
  input.click();
}
