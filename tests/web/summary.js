(m) => {
  const byFirst = (rows) => [...rows].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const table = ([key, pfn]) => {
    const [level, vaddr] = key.split(":").map(Number);
    return [vaddr * 8 + level, pfn];
  };
  const entries = ([number, leaf]) =>
    Array.from({ length: 512 }, (_, n) => [number * 512 + n, leaf[2 * n], leaf[2 * n + 1]]).filter((e) => e[1] || e[2]);
  const mms = [...m.mms].map(([number, mm]) => [
    number, mm.pid, mm.startBrk, mm.brk, mm.startStack, mm.rss,
    mm.sortedVmas().map((v) => [v.start, v.end, v.flags, v.pgoff, v.mapping]),
    byFirst([...mm.tables].map(table)), [...mm.deposited].sort((a, b) => a - b),
    byFirst([...mm.leaves].flatMap(entries)), byFirst([...mm.huge].map(([number, e]) => [number, e[0], e[1]])),
  ]);
  const tasks = [...m.tasks.values()].map((t) => [t.pid, t.ppid, t.comm, t.mm, t.exitSignal, t.program]);
  const s = m.shadow;
  return {
    mms: byFirst(mms), tasks: byFirst(tasks),
    files: byFirst([...m.files].map(([n, f]) => [n, f.dev, f.ino, f.name])),
    frames: [...m.frames].join(""), flags: [...m.frameFlags],
    cached: byFirst([...m.cached].map(([pfn, [mapping, index]]) => [pfn, mapping, index])),
    shmem: byFirst([...m.shmemSlots].map(([key, slot]) => [...key.split(":").map(Number), slot])),
    swap: byFirst(m.swapCache),
    shadow: s && [s.opener, s.target, s.start, s.end, s.isTracking, [...s.flags], [...s.pfns]],
    whole: m.isWhole, time: String(m.time),
  };
}
