# SPDX-License-Identifier: GPL-2.0-only
import hashlib, mmap, random, threading, zlib
def work(n):
    rnd = random.Random(n)
    maps = []
    for i in range(60):
        b = bytearray(rnd.randrange(1, 200) * 4096)
        zlib.crc32(hashlib.sha256(b).digest())
        m = mmap.mmap(-1, rnd.randrange(1, 64) * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        m[0] = 1
        m.madvise([mmap.MADV_DONTNEED, mmap.MADV_SEQUENTIAL, mmap.MADV_DONTDUMP][i % 3])
        if i % 4 == 0:
            m.resize(len(m) + 32 * 4096)
        maps.append(m)
        if len(maps) > 12:
            maps.pop(rnd.randrange(12)).close()
        d = {j: str(j) * 8 for j in range(500)}
ts = [threading.Thread(target=work, args=(n,)) for n in range(6)]
[t.start() for t in ts]
[t.join() for t in ts]
