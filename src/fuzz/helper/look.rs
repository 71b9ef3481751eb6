// SPDX-License-Identifier: GPL-2.0-only
//! After each call: what user mode can see of the window, as a hash, or whole where it is asked for.

use super::proc::{parse_line, procmap_query};
use super::{Helper, MAX_VMAS, TEXT, WireVma};
use crate::fuzz::backend::{Hash, Look, OFFSETS, PAGE, WINDOW, byte_word, compared_flags, hash_coverage, line_bits};
use crate::mm::task_mmu::parse_vm_flags;
use std::sync::atomic::Ordering::Relaxed;

impl Helper<'_> {
    /// Looks, and writes the answer of the current call.
    pub(super) fn finish_call(&mut self, result: i64) {
        let s = self.s;
        let at = s.at.load(Relaxed) as usize;
        let i = s.first.load(Relaxed) + at as u64;
        let look = Look { flags_every: s.look[0].load(Relaxed), bytes_every: s.look[1].load(Relaxed) };
        let mut h = Hash::new();
        if s.everywhere.load(Relaxed) != 0 {
            let n = self.query(0, u64::MAX);
            // SAFETY: as below.
            let vmas = unsafe { &(&*self.vmas.get())[..n] };
            hash_coverage(&mut h, vmas.iter().map(|v| (v[0], v[1])), &self.foreign[..self.nr_foreign]);
            self.put_step(at, result, h.value());
            return;
        }
        let n = self.vmas(look.flags(i));
        // SAFETY: this process has one thread, and nobody else holds the buffer now.
        let vmas = unsafe { &(&*self.vmas.get())[..n] };
        let all = compared_flags();
        for (j, v) in vmas.iter().enumerate() {
            h.add(v[0]);
            h.add(v[1]);
            h.add(line_bits(v[2]));
            h.add(self.file_name(vmas, j));
            h.add(v[3]);
            if look.flags(i) {
                h.add(v[2] & all);
            }
        }
        if look.bytes(i) {
            for v in vmas {
                for addr in (v[0]..v[1]).step_by(PAGE as usize) {
                    for o in OFFSETS {
                        h.add(byte_word(self.read(addr + o)));
                    }
                }
            }
        }
        self.put_step(at, result, h.value());
    }

    fn put_step(&self, at: usize, result: i64, hash: u64) {
        self.s.steps[at][0].store(result as u64, Relaxed);
        self.s.steps[at][1].store(hash, Relaxed);
        self.s.at.store(at as u32 + 1, Relaxed);
    }

    /// As `file_name()` of `fuzz/backend.rs`, by inode.
    pub(super) fn file_name(&self, vmas: &[WireVma], i: usize) -> u64 {
        let ino = vmas[i][4];
        if ino == 0 {
            return 0;
        }
        if let Some(f) = self.fds.inodes.iter().position(|&n| n == ino) {
            return f as u64 + 1;
        }
        0x100 + vmas[..=i].iter().position(|v| v[4] == ino).unwrap_or(i) as u64
    }

    /// The window for the other side, `VmFlags` included; inodes become numbers of files.
    pub(super) fn show(&mut self) {
        let n = if self.s.everywhere.load(Relaxed) != 0 { self.query(0, u64::MAX) } else { self.vmas(true) };
        // SAFETY: as in `finish_call()`.
        let vmas = unsafe { &(&*self.vmas.get())[..n] };
        for (i, v) in vmas.iter().enumerate() {
            for (to, from) in self.s.vmas[i].iter().zip(v) {
                to.store(*from, Relaxed);
            }
            self.s.vmas[i][4].store(self.file_name(vmas, i), Relaxed);
        }
        self.s.nr_vmas.store(n as u32, Relaxed);
    }

    /// Reads the window's VMAs into the buffer; with `flags` all of `VmFlags`, else the four characters of maps.
    pub(super) fn vmas(&mut self, flags: bool) -> usize {
        let end = WINDOW + self.s.pages.load(Relaxed) * PAGE;
        let query = self.s.query.load(Relaxed) != 0;
        let n = if query { self.query(WINDOW, end) } else { self.parse(self.fds.maps, false) };
        if flags {
            self.parse(self.fds.smaps, true);
        }
        n
    }

    fn query(&mut self, from: u64, end: u64) -> usize {
        // SAFETY: as in `finish_call()`.
        let out = unsafe { &mut *self.vmas.get() };
        let (mut at, mut n) = (from, 0);
        while n < MAX_VMAS {
            let Ok(Some(v)) = procmap_query(self.fds.maps, at) else { break };
            if v[0] >= end {
                break;
            }
            at = v[1];
            out[n] = v;
            n += 1;
        }
        n
    }

    /// Reads a text file of `/proc`: maps, or smaps for the flags of VMAs that are known already.
    pub(super) fn parse(&mut self, fd: i32, smaps: bool) -> usize {
        // SAFETY: as in `finish_call()`.
        let (text, out) = unsafe { (&mut *self.text.get(), &mut *self.vmas.get()) };
        let end = WINDOW + self.s.pages.load(Relaxed) * PAGE;
        // SAFETY: our own descriptor.
        unsafe { libc::lseek(fd, 0, libc::SEEK_SET) };
        let (mut n, mut fill, mut inside) = (0, 0, false);
        'file: loop {
            // SAFETY: the rest of the buffer is ours.
            let r = unsafe { libc::read(fd, text.as_mut_ptr().add(fill).cast(), TEXT - fill) };
            if r <= 0 {
                break;
            }
            fill += r as usize;
            let mut from = 0;
            while let Some(len) = text[from..fill].iter().position(|&b| b == b'\n') {
                let line = &text[from..from + len];
                from += len + 1;
                if let Some(v) = parse_line(line) {
                    inside = v[1] > WINDOW && v[0] < end;
                    if v[0] >= end {
                        break 'file;
                    }
                    if inside && !smaps && n < MAX_VMAS {
                        out[n] = v;
                    }
                    n += usize::from(inside && n < MAX_VMAS);
                } else if inside && smaps && line.starts_with(b"VmFlags:") {
                    out[n - 1][2] = parse_vm_flags(line);
                }
            }
            text.copy_within(from..fill, 0);
            fill -= from;
        }
        n
    }
}
