// SPDX-License-Identifier: GPL-2.0-only
//! `faultline host`: topology and pin plans, a host file, the hygiene report.

use super::Failure;
use crate::host::{self, Host};
use std::path::PathBuf;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example: faultline host show --host synthetic:'node:2 core:4 pu:2'")]
pub struct Args {
    /// show (topology, pin plans, ladder), capture (write hosts/NAME/), ready (hygiene report)
    #[arg(value_parser = ["show", "capture", "ready"], value_name = "show|capture|ready", hide_possible_values = true)]
    what: String,
    /// this, a name under hosts/ or built in, a host.toml or hwloc XML, synthetic:STRING
    #[arg(long, default_value = "this")]
    host: String,
    /// capture: where to
    #[arg(long, default_value = host::HOSTS_DIR)]
    out: PathBuf,
    /// capture: under which name [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// Bad input; a file that cannot be written.
pub fn main(a: &Args) -> Result<(), Failure> {
    let mut h = Host::load(&a.host).map_err(|e| Failure::Input(format!("--host {}: {e}", a.host)))?;
    match a.what.as_str() {
        "show" if a.json => println!("{}", h.to_json()),
        "show" => print!("{}", h.show()),
        "capture" => {
            if let Some(n) = &a.name {
                h.id.name.clone_from(n);
            }
            for f in h.capture(&a.out).map_err(|e| Failure::Input(format!("--out {}: {e}", a.out.display())))? {
                println!("{}", f.display());
            }
        }
        _ => {
            let ready = h.ready().map_err(|e| Failure::Input(format!("--host {}: {e}", a.host)))?;
            if a.json {
                println!("{}", serde_json::to_string(&ready).map_err(Failure::input)?);
            } else {
                print!("{}", ready.text());
            }
        }
    }
    Ok(())
}
