// SPDX-License-Identifier: GPL-2.0-only
//! The `faultline` command; everything is in [`faultline::cmd`].

fn main() {
    std::process::exit(faultline::cmd::main())
}
