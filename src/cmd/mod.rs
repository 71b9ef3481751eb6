// SPDX-License-Identifier: GPL-2.0-only
//! Floor 10: the command line, one verb a file.
//!
//! Exit codes: 0 done, 1 a check did not hold, 2 bad input, 130 interrupted. Bad input is one line on stderr that names
//! the argument, the value and what is accepted.

pub mod check;
pub mod compare;
pub mod fuzz;
pub mod host;
pub mod letter;
pub mod list;
#[cfg(feature = "plot")]
pub mod plot;
pub mod replay;
pub mod run;
pub mod trace;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

/// How a verb ended when not well.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 2: one line.
    Input(String),
    /// Exit code 1: a check did not hold.
    Check(String),
    /// Exit code 130: Ctrl-C; the line says how to go on.
    Interrupted(String),
}

impl Failure {
    /// An input error.
    pub fn input(e: impl std::fmt::Display) -> Self {
        Failure::Input(e.to_string())
    }
}

#[derive(Parser)]
#[command(
    name = "faultline",
    version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("FAULTLINE_COMMIT"), ")"),
    about = "What a change in how VMAs are allocated, freed and locked does to page-fault-heavy multithreaded work",
    after_help = "Example: faultline run --variant v6.12,v6.15 --workload brk1 --threads 1,2 --out a.jsonl\n         \
                  faultline compare a.jsonl --baseline v6.12"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// What there is, with a sentence each
    List(list::Args),
    /// Measure; append records
    Run(Box<run::Args>),
    /// The comparison table
    Compare(compare::Args),
    /// Plain text for a cover letter, at most 75 columns
    Letter(letter::Args),
    /// The figures
    #[cfg(feature = "plot")]
    Plot(plot::Args),
    /// Every lock protocol through every scenario: verdicts, and the interleavings that show them
    Check(check::Args),
    /// Differential test: the same random calls on the port and on the running kernel or a model
    Fuzz(fuzz::Args),
    /// Repeats a case of the fuzzer
    Replay(replay::Args),
    /// Topology and pin plans; write a host file; hygiene report
    Host(host::Args),
    /// Replay the memory calls of an strace -f log
    Trace(trace::Args),
}

/// Parses the command line and runs its verb; returns the exit code.
pub fn main() -> i32 {
    if let Some(code) = crate::fuzz::helper::main_if_asked() {
        return code;
    }
    // A closed pipe (`| head`) ends the program quietly, as with other tools.
    // SAFETY: before any thread starts.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let cli = match Cli::try_parse() {
        Ok(c) => c,
        Err(e) => return usage(&e),
    };
    // Those that run the port would end by an illegal instruction.
    let runs = matches!(cli.verb, Verb::Run(_) | Verb::Check(_) | Verb::Fuzz(_) | Verb::Replay(_) | Verb::Trace(_));
    if runs && let Err(e) = crate::arch::native::check_processor() {
        eprintln!("faultline: {e}");
        return 2;
    }
    let r = match cli.verb {
        Verb::List(a) => list::main(&a),
        Verb::Run(a) => {
            abort_on_panic();
            run::main(&a)
        }
        Verb::Compare(a) => compare::main(&a),
        Verb::Letter(a) => letter::main(&a),
        #[cfg(feature = "plot")]
        Verb::Plot(a) => plot::main(&a),
        Verb::Check(a) => check::main(&a),
        Verb::Fuzz(a) => fuzz::main(&a),
        Verb::Replay(a) => replay::main(&a),
        Verb::Host(a) => host::main(&a),
        Verb::Trace(a) => trace::main(&a),
    };
    match r {
        Ok(()) => 0,
        Err(Failure::Check(e)) => {
            eprintln!("faultline: {}", one_line(&e));
            1
        }
        Err(Failure::Input(e)) => {
            eprintln!("faultline: {}", one_line(&e));
            2
        }
        Err(Failure::Interrupted(e)) => {
            eprintln!("faultline: {}", one_line(&e));
            130
        }
    }
}

/// A worker that ends in the middle of a sample leaves the others waiting for it: the program ends instead, with the message.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tell(info);
        std::process::abort();
    }));
}

fn one_line(s: &str) -> String {
    s.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}

/// clap's complaint in one line.
fn usage(e: &clap::Error) -> i32 {
    match e.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print!("{e}");
            return 0;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprintln!(
                "faultline: a command is missing; accepted: list, run, compare, letter, plot, fuzz, replay, host, trace, help"
            );
            return 2;
        }
        _ => {}
    }
    let named = |kind| match e.get(kind) {
        Some(ContextValue::String(v)) => v.clone(),
        Some(ContextValue::Strings(v)) => v.join(", "),
        _ => String::new(),
    };
    let arg = named(ContextKind::InvalidArg);
    // `--seconds <SECONDS>` and `[WHAT]` by the word that the user typed or could type.
    let name = arg.split([' ', '=']).next().unwrap_or(&arg).trim_matches(['<', '>', '[', ']', '.']);
    let (value, accepted) = (named(ContextKind::InvalidValue), named(ContextKind::ValidValue));
    let source = std::error::Error::source(e).map(ToString::to_string).unwrap_or_default();
    let line = match e.kind() {
        ErrorKind::MissingRequiredArgument => format!("missing: {arg}; --help says what is accepted"),
        ErrorKind::InvalidValue if value.is_empty() => {
            format!("{name}: a value is missing; --help says what is accepted")
        }
        ErrorKind::InvalidValue => format!("{name} {value}: accepted: {accepted}"),
        ErrorKind::ValueValidation => format!("{name} {value}: {source}"),
        ErrorKind::UnknownArgument => format!("{arg}: no such argument; --help lists what is accepted"),
        ErrorKind::InvalidSubcommand => {
            let verb = named(ContextKind::InvalidSubcommand);
            format!(
                "{verb}: no such command; accepted: list, run, compare, letter, plot, fuzz, replay, host, trace, help"
            )
        }
        _ => one_line(e.to_string().lines().next().unwrap_or("bad arguments")).replacen("error: ", "", 1),
    };
    eprintln!("faultline: {line}");
    2
}
