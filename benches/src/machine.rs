// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container's start takes by the clock, and what more processors add to it.

use std::io::pipe;

use anyhow::Result;

use crate::Cli;
use crate::report::Row;
use crate::start::{median_of, millions};
use crate::subject::{Kernel, Runs};

/// Seconds to a cached image's first byte in the fast lab, at most.
const SECONDS: f64 = 2.0;
/// A start with 16 vCPUs beside one with one, at most.
const PROCESSORS_RATIO: f64 = 1.15;

/// Wall-clock time to the first byte of a cached image, with both kernels.
pub fn seconds(cli: &Cli) -> Result<Vec<Row>> {
    let row = |name, kernel, bound| {
        let runs = Runs::new(&cli.coracle, &cli.guest, kernel, cli.images.join("busybox"))?;
        runs.unpack()?;
        let figure = median_of(cli.rounds, &subject(&runs, 1), &|passed| {
            passed.time.as_secs_f64()
        })?;
        Ok::<_, anyhow::Error>(Row {
            name,
            figure,
            unit: "s",
            bound,
        })
    };
    Ok(vec![
        row(
            "coracle run, cached busybox image, to its first byte, small kernel",
            Kernel::Small,
            Some(SECONDS),
        )?,
        row("the same, stock kernel", Kernel::Stock, None)?,
    ])
}

/// Instructions of everything, waiting included, to the first byte with many vCPUs on one processor of the host.
pub fn processors(cli: &Cli) -> Result<Vec<Row>> {
    let runs = Runs::new(
        &cli.coracle,
        &cli.guest,
        Kernel::Small,
        cli.images.join("busybox"),
    )?;
    runs.unpack()?;
    let count = |vcpus| {
        eprintln!("bench: {vcpus} vCPUs, {} times", cli.rounds);
        median_of(cli.rounds, &subject(&runs, vcpus), &millions)
    };
    let [one, eight, sixteen, all] = [count(1)?, count(8)?, count(16)?, count(32)?];
    let row = |name, figure| Row::millions(name, figure, None);
    Ok(vec![
        row(
            "coracle run, cached busybox image, to its first byte, 1 vCPU",
            one,
        ),
        row("8 vCPUs", eight),
        row("16 vCPUs", sixteen),
        row("32 vCPUs", all),
        Row::ratio("16 vCPUs beside one", sixteen / one, PROCESSORS_RATIO),
    ])
}

fn subject(
    runs: &Runs,
    vcpus: u8,
) -> impl Fn() -> Result<(std::process::Command, std::io::PipeReader)> {
    move || {
        let (read, write) = pipe()?;
        let mut command = runs.with(&["--cpus", &vcpus.to_string()], &["echo", "x"]);
        command.stdout(write);
        Ok((command, read))
    }
}
