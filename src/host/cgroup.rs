// SPDX-License-Identifier: GPL-2.0-only
//! What the control groups of this process allow: a cpuset and a CPU quota, version 1 and 2.
//!
//! Every ancestor limits too, so each file is looked up from the process's group to the root of its mount and the
//! tightest value counts. In a container the path in `/proc/self/cgroup` can name a directory that the container's
//! mount does not show; then the lookup starts at the mount's root.
//!
//! What it cannot tell: limits above what the mount shows (`verify` and steal time may).

use super::cpulist;
use std::path::{Path, PathBuf};

/// Limits found.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Limits {
    /// CPUs of the cpuset, ascending, if there is one.
    pub cpuset: Option<Vec<u32>>,
    /// CPU time per wall time, in CPUs, if limited.
    pub quota_cpus: Option<f64>,
    /// The file that limits CPU time.
    pub quota_file: Option<String>,
    /// Memory limit in bytes, if limited.
    pub memory_max: Option<u64>,
}

impl Limits {
    /// A warning if the quota is less than `cpus` CPUs.
    pub fn warning(&self, cpus: usize) -> Option<String> {
        let quota = self.quota_cpus.filter(|&q| q < cpus as f64)?;
        let file = self.quota_file.as_deref().unwrap_or("cgroup");
        Some(format!("CPU quota of {quota:.2} CPUs ({file}) is below the {cpus} CPUs allowed: threads get throttled"))
    }
}

/// One mounted hierarchy.
struct Mount {
    /// Directory of the process's group below the mount, or the mount itself, and how far up to look.
    group: PathBuf,
    top: PathBuf,
}

impl Mount {
    /// First hit of `read` from the group upwards.
    fn nearest<T>(&self, read: impl Fn(&Path) -> Option<T>) -> Option<T> {
        self.up().find_map(|dir| read(&dir))
    }

    fn up(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let mut dir = Some(self.group.clone());
        std::iter::from_fn(move || {
            let here = dir.take()?;
            if here != self.top {
                dir = here.parent().map(Path::to_path_buf);
            }
            Some(here)
        })
    }
}

/// Reads the limits of this process; `root` is `/`, or a copy of a file tree.
pub fn read(root: &Path) -> Limits {
    let mounts = text(&root.join("proc/self/mountinfo")).unwrap_or_default();
    let groups = text(&root.join("proc/self/cgroup")).unwrap_or_default();
    let mount = |controller: &str| find_mount(root, &mounts, &groups, controller);
    let mut limits = Limits::default();
    let quota = |files: Vec<(f64, PathBuf)>| files.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
    if let Some(v2) = mount("") {
        limits.cpuset = v2.nearest(|d| cpus(&d.join("cpuset.cpus.effective")));
        let found = v2.up().filter_map(|d| v2_quota(&d.join("cpu.max"))).collect();
        if let Some((cpus, file)) = quota(found) {
            limits.quota_cpus = Some(cpus);
            limits.quota_file = Some(shown(root, &file));
        }
        limits.memory_max = v2.up().filter_map(|d| text(&d.join("memory.max"))?.parse().ok()).min();
    }
    if let Some(v1) = mount("cpuset") {
        let set = v1.nearest(|d| cpus(&d.join("cpuset.effective_cpus")).or_else(|| cpus(&d.join("cpuset.cpus"))));
        limits.cpuset = set.or(limits.cpuset);
    }
    if let Some(v1) = mount("cpu") {
        let found = v1.up().filter_map(|d| v1_quota(&d)).collect();
        if let Some((cpus, file)) = quota(found).filter(|q| limits.quota_cpus.is_none_or(|have| q.0 < have)) {
            limits.quota_cpus = Some(cpus);
            limits.quota_file = Some(shown(root, &file));
        }
    }
    if let Some(v1) = mount("memory") {
        // Version 1 writes "no limit" as a huge number, a little below 2^63.
        let found = v1.up().filter_map(|d| text(&d.join("memory.limit_in_bytes"))?.parse::<u64>().ok());
        limits.memory_max = found.filter(|&b| b < 1 << 62).chain(limits.memory_max).min();
    }
    limits
}

/// The hierarchy of a version-1 controller, or with an empty name that of version 2.
fn find_mount(root: &Path, mounts: &str, groups: &str, controller: &str) -> Option<Mount> {
    let group = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (id, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let hit = if controller.is_empty() {
            id == "0" && names.is_empty()
        } else {
            names.split(',').any(|n| n == controller)
        };
        hit.then_some(path)
    })?;
    let (top, shown_root) = mounts.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        let mut fs = fs.split(' ');
        let (kind, options) = (fs.next()?, fs.nth(1)?);
        let hit = match kind {
            "cgroup2" => controller.is_empty(),
            "cgroup" => !controller.is_empty() && options.split(',').any(|o| o == controller),
            _ => false,
        };
        let mut fields = mount.split(' ');
        hit.then(|| Some((fields.nth(4)?, mount.split(' ').nth(3)?)))?
    })?;
    let top = root.join(top.trim_start_matches('/'));
    // A mount may show only a part of the hierarchy: its root is then cut from the front of the group's path.
    let below = group.strip_prefix(shown_root.trim_end_matches('/')).unwrap_or(group).trim_start_matches('/');
    let dir = if below.is_empty() { top.clone() } else { top.join(below) };
    let inside = !below.split('/').any(|part| part == "..") && dir.is_dir();
    Some(Mount { group: if inside { dir } else { top.clone() }, top })
}

fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|t| t.trim().to_string())
}

fn cpus(path: &Path) -> Option<Vec<u32>> {
    cpulist::parse(&text(path)?).ok().filter(|l| !l.is_empty())
}

/// `cpu.max`: quota and period in us, or `max` and period.
fn v2_quota(file: &Path) -> Option<(f64, PathBuf)> {
    let text = text(file)?;
    let mut words = text.split_whitespace();
    let quota: f64 = words.next()?.parse().ok()?;
    let period: f64 = words.next().and_then(|p| p.parse().ok()).unwrap_or(100_000.0);
    (quota > 0.0 && period > 0.0).then(|| (quota / period, file.to_path_buf()))
}

fn v1_quota(dir: &Path) -> Option<(f64, PathBuf)> {
    let file = dir.join("cpu.cfs_quota_us");
    let quota: f64 = text(&file)?.parse().ok()?;
    let period: f64 = text(&dir.join("cpu.cfs_period_us"))?.parse().ok()?;
    (quota > 0.0 && period > 0.0).then_some((quota / period, file))
}

fn shown(root: &Path, file: &Path) -> String {
    format!("/{}", file.strip_prefix(root).unwrap_or(file).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        dir
    }

    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";

    #[test]
    fn version_2_takes_the_tightest_quota_on_the_way_up() {
        let dir = tree(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a/cpuset.cpus.effective", "0-3\n"),
            ("sys/fs/cgroup/a/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
        ]);
        let limits = read(dir.path());
        assert_eq!(limits.cpuset, Some(vec![0, 1, 2, 3]));
        assert_eq!(limits.quota_cpus, Some(1.5));
        assert_eq!(limits.memory_max, Some(1 << 30));
        let warning = limits.warning(4).unwrap();
        assert!(warning.contains("1.50 CPUs (/sys/fs/cgroup/a/cpu.max)") && warning.contains("4 CPUs"), "{warning}");
        assert_eq!(limits.warning(1), None);
    }

    #[test]
    fn version_1_has_a_mount_per_controller() {
        let dir = tree(&[
            (
                "proc/self/mountinfo",
                "31 23 0:27 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                 32 23 0:28 /docker/x /cg/cpuset rw - cgroup cgroup rw,cpuset\n\
                 33 23 0:29 / /cg/memory rw - cgroup cgroup rw,memory\n",
            ),
            ("proc/self/cgroup", "4:cpuset:/docker/x\n3:cpu,cpuacct:/docker/x\n2:memory:/\n"),
            ("cg/cpu,cpuacct/docker/x/cpu.cfs_quota_us", "-1\n"),
            ("cg/cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n"),
            ("cg/cpu,cpuacct/docker/cpu.cfs_quota_us", "50000\n"),
            ("cg/cpu,cpuacct/docker/cpu.cfs_period_us", "100000\n"),
            ("cg/cpuset/cpuset.effective_cpus", "2,5\n"),
            ("cg/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let limits = read(dir.path());
        assert_eq!(limits.cpuset, Some(vec![2, 5]));
        assert_eq!(limits.quota_cpus, Some(0.5));
        assert_eq!(limits.quota_file.as_deref(), Some("/cg/cpu,cpuacct/docker/cpu.cfs_quota_us"));
        assert_eq!(limits.memory_max, None);
    }

    #[test]
    fn a_path_the_mount_does_not_show_starts_at_its_root() {
        let dir = tree(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "0::/not/shown/here\n"),
            ("sys/fs/cgroup/cpu.max", "20000 10000\n"),
        ]);
        assert_eq!(read(dir.path()).quota_cpus, Some(2.0));
        assert_eq!(read(Path::new("/nonexistent")), Limits::default());
    }
}
