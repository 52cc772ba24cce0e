for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.rows[0].cells];
  const value = (row, i) => {
    const cell = row.cells[i], v = cell.dataset.v ?? cell.textContent.trim();
    if (v === '' || v === 'None' || v === '–') return NaN;
    const n = v.replace(/\u202f/g, '').replace('−', '-');  // as numbers are written for people
    return heads[i].classList.contains('n') ? parseFloat(n) : isNaN(n) ? v : +n;
  };
  heads.forEach((head, i) => {
    head.tabIndex = 0;
    const sort = () => {
      const up = head.getAttribute('aria-sort') === 'descending';
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const rows = [...table.rows].slice(1).sort((a, b) => {
        const x = value(a, i), y = value(b, i);
        if (x !== x || y !== y) return (x !== x) - (y !== y);
        return (x > y ? 1 : x < y ? -1 : 0) * (up ? 1 : -1);
      });
      rows.forEach(row => row.parentNode.append(row));
    };
    head.onclick = sort;
    head.onkeydown = event => { if (event.key === 'Enter') sort(); };
  });
}
