(() => {
  const box = document.querySelector(".choose"), select = box.querySelector("select"), views = []
  const choose = name => {
    select.value = name
    for (const view of views) view.signal("chosen", name).runAsync()
    for (const line of document.querySelectorAll("[data-row]")) line.classList.toggle("dim", name !== "" && line.dataset.row !== name)
  }
  select.oninput = () => choose(select.value)
  box.hidden = false

  for (const place of document.querySelectorAll("[data-chart]")) {
    const live = document.createElement("div"), still = place.querySelector("svg")
    live.className = "live"
    place.append(live)
    const spec = JSON.parse(document.getElementById("chart-" + place.dataset.chart).textContent)
    vegaEmbed(live, spec, {ast: true, actions: false, renderer: "svg"}).then(({view}) => {
      const drawn = live.querySelector("svg")
      drawn.setAttribute("role", "img")
      drawn.setAttribute("aria-label", still.getAttribute("aria-label"))
      drawn.removeAttribute("width")
      drawn.removeAttribute("height")
      place.classList.add("drawn")
      view.addEventListener("click", (event, item) => {
        const name = item?.datum?.series ?? ""
        choose(name === select.value || ![...select.options].some(option => option.value === name) ? "" : name)
      })
      views.push(view)
      if (select.value) view.signal("chosen", select.value).runAsync()
    })
  }

  const value = (line, i) => {
    const cell = line.children[i], number = parseFloat(cell.dataset.value)
    return "value" in cell.dataset ? number : cell.tagName === "TH" ? cell.textContent : null
  }
  for (const table of document.querySelectorAll("table.rows")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0]
    heads.forEach((head, i) => {
      if (i > 0 && ![...body.rows].some(line => "value" in line.children[i].dataset)) return
      const button = document.createElement("button")
      button.append(...head.childNodes)
      head.append(button)
      button.onclick = () => {
        const down = i > 0 ? head.ariaSort !== "descending" : head.ariaSort === "ascending"
        for (const other of heads) other.removeAttribute("aria-sort")
        head.setAttribute("aria-sort", down ? "descending" : "ascending")
        const lines = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a, i), value(b, i)]
          if (x === null || y === null) return (x === null) - (y === null)
          return (down ? -1 : 1) * (typeof x === "string" ? x.localeCompare(y, undefined, {numeric: true}) : x - y)
        })
        body.append(...lines)
      }
    })
  }
})()
