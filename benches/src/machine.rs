// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container's start takes by the clock, and what more processors add to it.

use std::io::pipe;

use anyhow::Result;

use crate::Cli;
use crate::report::Row;
use crate::start::{median_of, millions};
use crate::subject::{Guest, Guests, Kernel, Runs};

/// Seconds to a cached image's first byte in the fast lab, at most.
const SECONDS: f64 = 2.0;
/// A start with 16 vCPUs beside one with one, at most.
const PROCESSORS_RATIO: f64 = 1.15;
/// What a further vCPU costs where there are many, beside where there are few, at most: nothing grows with the square.
const GROWTH: f64 = 1.25;

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

/// What more vCPUs add: to a whole start with all waiting included, of one vCPU for another on the host's only processor;
/// and to what is ours of it, which no kernel of a guest has a part in.
pub fn processors(cli: &Cli) -> Result<Vec<Row>> {
    let runs = Runs::new(
        &cli.coracle,
        &cli.guest,
        Kernel::Small,
        cli.images.join("busybox"),
    )?;
    runs.unpack()?;
    let start = |vcpus| {
        eprintln!("bench: {vcpus} vCPUs, {} times", cli.rounds);
        median_of(cli.rounds, &subject(&runs, vcpus), &millions)
    };
    let guests = Guests::new(&cli.guest)?;
    let ours = |vcpus| {
        eprintln!("bench: {vcpus} vCPUs of a tiny guest, {} times", cli.rounds);
        let subject = || guests.vmm(&cli.coracle, Guest::Tiny, vcpus);
        median_of(cli.rounds, &subject, &millions)
    };
    let [one, eight, sixteen, all] = [ours(1)?, ours(8)?, ours(16)?, ours(32)?];
    let growth = (all - sixteen) / 16.0 / ((sixteen - one) / 15.0);
    let few = start(1)?;
    // On one emulated processor mostly nothing comes in time; what is known already is told all the same.
    let many = start(16).unwrap_or_else(|error| {
        eprintln!("bench: 16 vCPUs: {error:#}");
        f64::NAN
    });
    let row = |name, figure| Row::millions(name, figure, None);
    Ok(vec![
        row(
            "VMM role: exec to a tiny guest's first instruction, 1 vCPU",
            one,
        ),
        row("8 vCPUs", eight),
        row("16 vCPUs", sixteen),
        row("32 vCPUs", all),
        Row::ratio(
            "each vCPU from 16 to 32 beside each from 1 to 16",
            growth,
            GROWTH,
        ),
        row(
            "coracle run, cached busybox image, to its first byte, 1 vCPU",
            few,
        ),
        row("16 vCPUs", many),
        Row::ratio("16 vCPUs beside one", many / few, PROCESSORS_RATIO),
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
