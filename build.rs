// SPDX-License-Identifier: GPL-2.0-only
//! Hands the git commit and the compiler's version to the program: both are part of every record.

use std::process::Command;

fn first_line(cmd: &mut Command) -> Option<String> {
    let out = cmd.output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8(out.stdout).ok()?;
    Some(text.lines().next()?.to_string())
}

fn main() {
    let commit = first_line(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]));
    let dirty = Command::new("git").args(["diff", "--quiet", "HEAD", "--", "src", "Cargo.toml"]).status();
    let dirty = commit.is_some() && dirty.is_ok_and(|s| !s.success());
    let commit = commit.unwrap_or_else(|| "unknown".into()) + if dirty { "-dirty" } else { "" };
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let rustc = first_line(Command::new(rustc).arg("--version")).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=FAULTLINE_COMMIT={commit}");
    println!("cargo:rustc-env=FAULTLINE_RUSTC={rustc}");
    if let Some(head) = first_line(Command::new("git").args(["rev-parse", "--git-path", "HEAD"])) {
        println!("cargo:rerun-if-changed={head}");
    }
    if let Some(logs) = first_line(Command::new("git").args(["rev-parse", "--git-path", "logs/HEAD"])) {
        println!("cargo:rerun-if-changed={logs}");
    }
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=Cargo.toml");
}
