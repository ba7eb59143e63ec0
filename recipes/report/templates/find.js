for (const box of document.querySelectorAll(".find")) {
  const [text, domain, kind] = box.querySelectorAll("input, select"), cards = [...box.parentNode.querySelectorAll(".question")]
  const look = () => {
    const words = text.value.toLowerCase()
    for (const card of cards)
      card.hidden = !(card.textContent.toLowerCase().includes(words) && [domain, kind].every(s => !s.value || card.dataset[s.name] === s.value))
    box.querySelector("output").textContent = cards.filter(card => !card.hidden).length + " of " + cards.length
  }
  box.hidden = false
  box.oninput = look
  look()
}
