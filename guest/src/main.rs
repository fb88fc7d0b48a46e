// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle-guest`: makes what a guest starts from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use coracle_guest::modules::{ModuleTree, REQUIRED};
use coracle_guest::{initramfs, vmlinuz};

/// Makes what a guest starts from: its initial file system and its kernel
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pack the agent and the kernel modules that it needs into an initramfs
    Initramfs {
        /// The agent's executable, statically linked
        #[arg(long, value_name = "FILE")]
        agent: PathBuf,
        /// Directory of the kernel's modules, such as /lib/modules/6.1.0-amd64
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// A module to pack beside the required ones; may be given more than once
        #[arg(long, value_name = "NAME", requires = "modules")]
        module: Vec<String>,
        /// File to write
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Take the uncompressed kernel out of a bzImage
    Vmlinux {
        /// The bzImage
        #[arg(long, value_name = "FILE")]
        vmlinuz: PathBuf,
        /// File to write
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Initramfs {
            agent,
            modules,
            module,
            output,
        } => {
            let agent_file = read(&agent)?;
            let modules = match modules {
                // A kernel that needs no modules has none to offer.
                None => Vec::new(),
                Some(directory) => ModuleTree::open(&directory)?.resolve(
                    REQUIRED
                        .into_iter()
                        .chain(module.iter().map(String::as_str)),
                )?,
            };
            let mut archive = Vec::new();
            initramfs::write(&mut archive, &agent_file, &modules)
                .with_context(|| format!("cannot use the agent {}", agent.display()))?;
            replace(&output, &archive)
        }
        Command::Vmlinux { vmlinuz, output } => {
            let kernel = vmlinuz::extract(&read(&vmlinuz)?)
                .with_context(|| format!("cannot use the kernel image {}", vmlinuz.display()))?;
            replace(&output, &kernel)
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file under another name first, so that nobody sees half of it. One that is as it should be stays.
fn replace(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(());
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let result = fs::write(&temporary, contents).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // It may not even have been made; the first failure is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    result.with_context(|| format!("cannot write {}", path.display()))
}
