// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bench`: what starting a guest costs, beside the floor, in one run.
//!
//! In the lab's deterministic mode the time stamp counter counts instructions, so a figure is the
//! same on any machine; elsewhere it counts cycles, and only ratios mean something. `make bench`
//! runs all of it where each part belongs.

mod beside;
mod count;
mod machine;
mod memory;
mod report;
mod start;
mod subject;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use report::Row;

/// Measures what starting a guest costs, beside the floor.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// The executable that is measured
    #[arg(long, env = "CORACLE_BIN")]
    coracle: PathBuf,
    /// The bare-minimum VMM that it is compared with
    #[arg(long, env = "CORACLE_FLOOR")]
    floor: PathBuf,
    /// Directory of the guest's kernel and initial file system
    #[arg(long, env = "CORACLE_GUEST")]
    guest: PathBuf,
    /// Directory of the test images
    #[arg(long, env = "CORACLE_IMAGES")]
    images: PathBuf,
    /// Measurements of each row; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[command(subcommand)]
    part: Part,
}

#[derive(Clone, Copy, Subcommand)]
enum Part {
    /// Millions of instructions (deterministic lab): a tiny guest, a stock kernel, a cached image
    Instructions,
    /// Millions of instructions (deterministic lab): a container's start and streams beside `runc run` and `crun run`
    Runtimes,
    /// Millions of instructions (deterministic lab): a container's start with 1, 8, 16 and 32 vCPUs
    Processors,
    /// Seconds (fast lab): a container's start with both kernels
    Seconds,
    /// Milliseconds from exec to a tiny guest's first exit, on this machine's own KVM
    Milliseconds,
    /// Host memory beyond guest memory: the only machine, and each further one
    Memory,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match measure(&cli) {
        Ok(rows) => {
            print!("{}", report::table(&rows));
            match rows.iter().filter(|row| !row.is_met()).count() {
                0 => ExitCode::SUCCESS,
                missed => {
                    eprintln!(
                        "bench: {missed} of {} figures exceed their bound",
                        rows.len()
                    );
                    ExitCode::FAILURE
                }
            }
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> Result<Vec<Row>> {
    match cli.part {
        Part::Instructions => start::instructions(cli),
        Part::Runtimes => beside::runtimes(cli),
        Part::Processors => machine::processors(cli),
        Part::Seconds => machine::seconds(cli),
        Part::Milliseconds => start::milliseconds(cli),
        Part::Memory => memory::beyond_the_guest(cli),
    }
}
