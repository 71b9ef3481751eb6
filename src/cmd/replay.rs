// SPDX-License-Identifier: GPL-2.0-only
//! `faultline replay`: repeats a case of the fuzzer from its token, and says whether the two sides still differ.

use super::Failure;
use super::fuzz::{backend, bare, broken, print_account};
use crate::fuzz::backend::Look;
use crate::fuzz::driver;
use crate::fuzz::token::{Case, Side};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example: faultline replay fz1.fRwBAg...")]
pub struct Args {
    /// The token that `faultline fuzz` printed
    token: String,
    /// Only check the token and print its calls
    #[arg(long)]
    show: bool,
    /// A rule of the model to break, as in fuzz
    #[arg(long, hide = true)]
    broken: Option<String>,
}

/// The verb.
pub fn main(a: &Args) -> Result<(), Failure> {
    let case = Case::parse(a.token.trim()).map_err(|e| Failure::Input(format!("TOKEN: {e}")))?;
    if a.show {
        if let Some(s) = crate::fuzz::text::setup(&case.setup) {
            println!("begins with: {s}");
        }
        for (i, c) in case.calls.iter().enumerate() {
            println!("{}. {}", i + 1, crate::fuzz::text::call(c));
        }
        return Ok(());
    }
    let broken = broken(a.broken.as_deref())?;
    let mut lead = backend(case.subject, &case.variant, broken)?;
    let mut other = if case.against == Side::Kernel && case.setup.bare.is_some() {
        bare().map_err(|e| Failure::Input(format!("TOKEN: {e}")))?
    } else {
        backend(case.against, &case.variant, None)?
    };
    let cannot = |e: crate::fuzz::Stop| Failure::Check(format!("the replay ended early: {e}"));
    if case.setup.everywhere {
        let space = other.space().map_err(cannot)?;
        lead.load(&space.ok_or_else(|| Failure::Input("TOKEN: placement is only held against a kernel".into()))?);
    }
    let seen = driver::account(&case.setup, &case.calls, &Look::ALWAYS, &mut *lead, &mut *other).map_err(cannot)?;
    print_account(&seen);
    if seen.differs {
        return Err(Failure::Check(format!("{} and {} differ in the last call", lead.name(), other.name())));
    }
    println!("no difference");
    Ok(())
}
