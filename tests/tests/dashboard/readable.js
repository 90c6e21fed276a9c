// What keeps somebody from reading the page or using it, as lines; on a telephone more is asked for.
((isPhone, isDark) => {
  const wrong = [];
  const shown = (it) => it.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const named = (it) => `${it.localName}${it.id && `#${it.id}`} ${JSON.stringify(it.textContent.trim().slice(0, 40))}`;
  const all = [...document.body.querySelectorAll("*")].filter(shown);

  // Colours, as red, green, blue and how much of them there is.
  const colour = (text) => {
    const parts = /^rgba?\(([^)]*)\)$/.exec(text);
    if (!parts) throw new Error(`a colour: ${text}`);
    const [red, green, blue, much = 1] = parts[1].split(",").map(Number);
    return [red, green, blue, much];
  };
  const over = (front, back) => back.slice(0, 3).map((it, at) => front[at] * front[3] + it * (1 - front[3])).concat(1);
  const ground = (it) => {
    const own = colour(getComputedStyle(it).backgroundColor);
    if (own[3] === 1) return own;
    if (!it.parentElement) throw new Error("a page without a background");
    return over(own, ground(it.parentElement));
  };
  // As the Web Content Accessibility Guidelines have it.
  const luminance = (it) => {
    const [red, green, blue] = it.slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((it, than) => it - than);
    return (light + 0.05) / (dark + 0.05);
  };
  const judge = (it, part, least) => {
    const style = getComputedStyle(it, part);
    const back = ground(it);
    const ratio = contrast(over(colour(style.color), back), back);
    if (ratio < least) wrong.push(`contrast ${ratio.toFixed(2)} of ${named(it)} ${part ?? ""}`);
    const size = parseFloat(style.fontSize);
    if (size < 12) wrong.push(`letters of ${size} pixels in ${named(it)} ${part ?? ""}`);
  };
  if ((luminance(ground(document.body)) < 0.5) !== isDark) wrong.push("the page is not as dark as it should be");
  let judged = 0;
  for (const it of all) {
    const hasText = [...it.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (hasText || it.matches("input, select")) {
      judge(it, undefined, 4.5);
      judged += 1;
    }
    if (it.matches("input")) judge(it, "::placeholder", 4.5);
    if (!["none", "normal"].includes(getComputedStyle(it, "::before").content)) judge(it, "::before", 4.5);
  }
  if (judged < 40) wrong.push(`only ${judged} texts`);
  // Lines of charts are no text.
  const line = document.createElement("i");
  line.style.color = "var(--accent)";
  document.querySelector("figure").append(line);
  const ratio = contrast(colour(getComputedStyle(line).color), ground(line));
  line.remove();
  if (ratio < 3) wrong.push(`contrast ${ratio.toFixed(2)} of charts`);
  for (const it of document.querySelectorAll("canvas")) {
    const pixels = it.getContext("2d").getImageData(0, 0, it.width, it.height).data;
    if (!pixels.some((part) => part > 0)) wrong.push(`nothing in ${it.id}`);
  }

  // Where text is: on the page, in whatever cuts it, and on no other text.
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) wrong.push(`the page is ${document.documentElement.scrollWidth} wide, of ${width}`);
  const boxes = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const it = node.parentElement;
    if (!node.data.trim() || !shown(it) || it.matches("option, script, noscript")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) boxes.push({ it, box });
  }
  for (const { it, box } of boxes) {
    for (let out = it; out; out = out.parentElement) {
      const style = getComputedStyle(out);
      const isRoot = out === document.documentElement;
      // A wide table may be scrolled where there is a mouse.
      const cuts = style.overflowX !== "visible" && (isPhone || style.overflowX !== "auto");
      const edge = isRoot ? { left: 0, right: width } : out.getBoundingClientRect();
      if ((cuts || (isRoot && !it.closest(".wide"))) && (box.left < edge.left - 1 || box.right > edge.right + 1)) {
        wrong.push(`${named(it)} is cut by ${named(out)}`);
        break;
      }
      if (!isRoot && cuts && style.overflowX === "auto") break;
    }
  }
  const pen = document.createElement("canvas").getContext("2d");
  for (const it of document.querySelectorAll("[placeholder]")) {
    const style = getComputedStyle(it, "::placeholder");
    pen.font = `${style.fontSize} ${style.fontFamily}`;
    const room = it.clientWidth - parseFloat(getComputedStyle(it).paddingLeft) * 2;
    if (pen.measureText(it.placeholder).width > room) wrong.push(`${named(it)} has no room for ${it.placeholder}`);
  }
  const overlap = (one, other) => Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1
    && Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 3;
  boxes.forEach((one, at) => {
    for (const other of boxes.slice(at + 1)) {
      if (overlap(one.box, other.box)) wrong.push(`${named(one.it)} is on ${named(other.it)}`);
    }
  });
  if (!isPhone) return wrong;

  // A row is a card, whose cells say what they are and have room for it.
  for (const it of all.filter((one) => one.matches("table:not(.pairs) td:not(.none)"))) {
    const label = getComputedStyle(it, "::before").content;
    if (!it.dataset.label || label !== JSON.stringify(it.dataset.label)) wrong.push(`${named(it)} does not say what it is`);
    if (it.scrollWidth > it.clientWidth) wrong.push(`${named(it)} is ${it.scrollWidth} wide, of ${it.clientWidth}`);
  }
  for (const it of all.filter((one) => one.matches("input, select, button, a"))) {
    const box = it.getBoundingClientRect();
    if (Math.min(box.width, box.height) < 32) wrong.push(`${named(it)} is too small for a finger: ${box.height}`);
    // Below that telephones enlarge the page when somebody wants to type.
    if (it.matches("input, select") && parseFloat(getComputedStyle(it).fontSize) < 16) wrong.push(`${named(it)} has small letters`);
  }
  return wrong;
})
