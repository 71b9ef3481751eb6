// SPDX-License-Identifier: GPL-2.0-only
import java.util.*;
import java.util.stream.*;
public class Hello {
    public static void main(String[] a) throws Exception {
        List<Thread> ts = new ArrayList<>();
        for (int t = 0; t < 4; t++) {
            final int n = t;
            Thread th = new Thread(() -> {
                long s = 0;
                for (int i = 0; i < 200; i++) {
                    byte[][] b = new byte[64][];
                    for (int j = 0; j < b.length; j++) b[j] = new byte[16384 + n * 1024];
                    s += IntStream.range(0, 1000).mapToObj(Integer::toString).collect(Collectors.joining()).length();
                }
                System.out.println(s);
            });
            ts.add(th);
            th.start();
        }
        for (Thread t : ts) t.join();
    }
}
