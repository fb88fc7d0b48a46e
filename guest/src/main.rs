// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle-guest`: makes what a guest starts from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use coracle_guest::index::{INDEX, index};
use coracle_guest::modules::{ModuleTree, OF_DEVICES, OF_WORKLOADS, REQUIRED};
use coracle_guest::{initramfs, vmlinux, vmlinuz};

/// What an ELF file begins with.
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

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
    /// Collect the kernel modules that containers may want, for the guest to load from the share when they do
    Modules {
        /// Directory of the kernel's modules, such as /lib/modules/6.1.0-amd64
        #[arg(long, value_name = "DIR")]
        modules: PathBuf,
        /// A module to collect beside the usual ones; may be given more than once
        #[arg(long, value_name = "NAME")]
        module: Vec<String>,
        /// Directory to write, of nothing else
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Take the kernel out of a bzImage or an ELF file, without what need not be loaded
    Vmlinux {
        /// The bzImage, or the ELF file
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
            let (modules, drivers) = match modules {
                // A kernel that needs no modules has none to offer.
                None => (Vec::new(), Vec::new()),
                Some(directory) => {
                    let tree = ModuleTree::open(&directory)?;
                    let asked = module.iter().map(String::as_str);
                    let modules = tree.resolve(REQUIRED.into_iter().chain(asked))?;
                    let drivers = tree.resolve_present(&OF_DEVICES, &modules)?;
                    (modules, drivers)
                }
            };
            let mut archive = Vec::new();
            initramfs::write_with_drivers(&mut archive, &agent_file, &modules, &drivers)
                .with_context(|| format!("cannot use the agent {}", agent.display()))?;
            replace(&output, &archive)
        }
        Command::Modules {
            modules,
            module,
            output,
        } => collect(&modules, &module, &output),
        Command::Vmlinux { vmlinuz, output } => {
            let unusable = || format!("cannot use the kernel image {}", vmlinuz.display());
            let image = read(&vmlinuz)?;
            let kernel = if image.starts_with(&ELF_MAGIC) {
                image
            } else {
                vmlinuz::extract(&image).with_context(unusable)?
            };
            replace(
                &output,
                &vmlinux::without_padding(&kernel).with_context(unusable)?,
            )
        }
    }
}

/// Writes the modules that containers may want, and their index last.
fn collect(directory: &Path, asked: &[String], output: &Path) -> Result<()> {
    let tree = ModuleTree::open(directory)?;
    let mut modules = tree.resolve(asked.iter().map(String::as_str))?;
    let patterns: Vec<_> = OF_WORKLOADS.into_iter().chain(OF_DEVICES).collect();
    modules.extend(tree.resolve_present(&patterns, &modules)?);
    fs::create_dir_all(output).with_context(|| format!("cannot make {}", output.display()))?;
    for module in &modules {
        replace(&output.join(format!("{}.ko", module.name)), &module.image)?;
    }
    replace(&output.join(INDEX), index(&modules).as_bytes())
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
