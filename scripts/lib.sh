# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the other scripts: says what is missing on this machine, and installs it where it may.

say() { printf '%s\n' "$*" >&2; }
die() { say "$0: $*"; exit 2; }

# need_packages PACKAGE...: Debian packages; installs the missing ones as root, else prints the one command and ends.
need_packages() {
    missing=""
    for p in "$@"; do
        dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
    done
    [ -z "$missing" ] && return 0
    command -v apt-get >/dev/null || die "this machine has no apt-get; install the equivalents of:$missing"
    if [ "$(id -u)" = 0 ]; then
        say "installing:$missing"
        # shellcheck disable=SC2086 # a list
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } \
            >/dev/null || die "apt-get could not install:$missing"
    else
        say "packages are missing; run this once, then again this script:"
        say "  sudo apt-get install --no-install-recommends$missing"
        exit 2
    fi
}

# want_packages WHY PACKAGE...: installs what is missing where it may (root, apt-get); else says what is lost without it.
want_packages() {
    lost=$1
    shift
    command -v dpkg-query >/dev/null || return 0
    missing=""
    for p in "$@"; do
        dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
    done
    [ -z "$missing" ] && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing:$missing"
        # shellcheck disable=SC2086 # a list
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } \
            >/dev/null 2>&1 && return 0
        say "apt-get could not install$missing: $lost"
    else
        say "not installed:$missing: $lost"
    fi
}

# liburcu, a peer of benches/rcu.rs that is loaded at run time.
want_peers() {
    want_packages "benches/rcu.rs leaves its rows out" liburcu8
}

need_rust() {
    if ! command -v cargo >/dev/null && [ -r "$HOME/.cargo/env" ]; then
        # shellcheck disable=SC1091 # written by rustup
        . "$HOME/.cargo/env"
    fi
    command -v cargo >/dev/null || die "cargo is missing; install Rust 1.88 or newer (https://rustup.rs) first"
}

# A C compiler links every Rust program; criterion's alloca compiles a line of C; hwloc reads topologies; the benches'
# peers mimalloc and jemalloc are C, and jemalloc's build runs make.
need_build() {
    need_rust
    if command -v dpkg-query >/dev/null; then
        command -v cc >/dev/null || need_packages gcc libc6-dev
        command -v make >/dev/null || need_packages make
        need_packages libhwloc-dev
    else
        command -v cc >/dev/null || die "a C compiler (cc) is missing"
        command -v make >/dev/null || die "make is missing"
        [ -e /usr/include/hwloc.h ] || die "hwloc's development files (hwloc.h) are missing"
    fi
}
