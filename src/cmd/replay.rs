// SPDX-License-Identifier: GPL-2.0-only
//! `faultline replay`: repeats a case of the fuzzer from its token, and says whether the two sides still differ.

use super::Failure;
use super::fuzz::{backend, print_account};
use crate::fuzz::backend::Look;
use crate::fuzz::driver;
use crate::fuzz::token::Case;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example: faultline replay fz1.fRwBAg...")]
pub struct Args {
    /// The token that `faultline fuzz` printed
    token: String,
    /// Only check the token and print its calls
    #[arg(long)]
    show: bool,
}

/// The verb.
pub fn main(a: &Args) -> Result<(), Failure> {
    let case = Case::parse(a.token.trim()).map_err(|e| Failure::Input(format!("TOKEN: {e}")))?;
    if a.show {
        for (i, c) in case.calls.iter().enumerate() {
            println!("{}. {}", i + 1, crate::fuzz::text::call(c));
        }
        return Ok(());
    }
    let mut lead = backend(case.subject, &case.variant)?;
    let mut other = backend(case.against, &case.variant)?;
    let cannot = |e: crate::fuzz::Stop| Failure::Check(format!("the replay ended early: {e}"));
    let seen = driver::account(&case.setup, &case.calls, &Look::ALWAYS, &mut *lead, &mut *other).map_err(cannot)?;
    print_account(&seen);
    if seen.differs {
        return Err(Failure::Check(format!("{} and {} differ in the last call", lead.name(), other.name())));
    }
    println!("no difference");
    Ok(())
}
