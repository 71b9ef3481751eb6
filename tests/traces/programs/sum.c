// SPDX-License-Identifier: GPL-2.0-only
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
static int cmp(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
int main(void)
{
	int v[1000];
	for (int i = 0; i < 1000; i++)
		v[i] = (int)(1000 * sin(i));
	qsort(v, 1000, sizeof(v[0]), cmp);
	printf("%d %d\n", v[0], v[999]);
	return 0;
}
