# SPDX-License-Identifier: GPL-2.0-only
for i in 1 2 3 4 5 6; do
    seq 1 20000 | sort -R | head -n 5000 | awk '{ s += $1 } END { print s }' | tr 0-9 a-j
done
( x=$(seq 1 100 | wc -l); echo "$x" ) &
wait
