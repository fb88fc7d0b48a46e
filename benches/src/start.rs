// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a start costs.

use std::io::{PipeReader, pipe};
use std::process::Command;

use anyhow::{Result, bail};

use crate::Cli;
use crate::count::{Passed, to_first_byte};
use crate::report::{Row, median};
use crate::subject::{Guest, Guests, Kernel, Runs};

/// Instructions of the VMM role from exec to a tiny guest's first instruction, at most.
const TINY_BOUND: f64 = 4.0;
/// The VMM role's boot of a stock kernel beside the floor's, at most.
const STOCK_RATIO: f64 = 1.03;
/// A cached image's first byte beside the floor's boot, at most.
const RUN_RATIO: f64 = 1.25;
/// Milliseconds of the VMM role from exec to a tiny guest's first exit, at most.
const TINY_MILLISECONDS: f64 = 3.0;

/// How often a subject is started that hangs.
const ATTEMPTS: u32 = 4;

/// Makes the command that is measured, and the pipe of its output.
pub type Subject<'s> = dyn Fn() -> Result<(Command, PipeReader)> + 's;

/// Instruction counts, in millions.
pub fn instructions(cli: &Cli) -> Result<Vec<Row>> {
    let guests = Guests::new(&cli.guest)?;
    let count = |what: &str, subject: &Subject<'_>| {
        eprintln!("bench: {what}, {} times", cli.rounds);
        median_of(cli.rounds, subject, &millions)
    };
    let tiny_floor = count("floor, tiny guest", &|| {
        guests.floor(&cli.floor, Guest::Tiny)
    })?;
    let tiny = count("VMM role, tiny guest", &|| {
        guests.vmm(&cli.coracle, Guest::Tiny, 1)
    })?;
    let stock_floor = count("floor, stock kernel", &|| {
        guests.floor(&cli.floor, Guest::Stock)
    })?;
    let stock = count("VMM role, stock kernel", &|| {
        guests.vmm(&cli.coracle, Guest::Stock, 1)
    })?;

    let runs = Runs::new(
        &cli.coracle,
        &cli.guest,
        Kernel::Stock,
        cli.images.join("busybox"),
    )?;
    runs.unpack()?;
    let run = count("coracle run, cached image", &|| {
        let (read, write) = pipe()?;
        let mut command = runs.command(&["echo", "x"]);
        command.stdout(write);
        Ok((command, read))
    })?;

    Ok(vec![
        Row::millions(
            "floor: exec to a tiny guest's first instruction",
            tiny_floor,
            None,
        ),
        Row::millions("VMM role: the same", tiny, Some(TINY_BOUND)),
        Row::millions(
            "floor: exec to the first instruction of /init, stock kernel",
            stock_floor,
            None,
        ),
        Row::millions("VMM role: the same", stock, None),
        Row::ratio(
            "VMM role beside the floor",
            stock / stock_floor,
            STOCK_RATIO,
        ),
        Row::millions(
            "coracle run, cached busybox image, to its first byte, stock kernel",
            run,
            None,
        ),
        Row::ratio(
            "coracle run beside the floor's boot",
            run / stock_floor,
            RUN_RATIO,
        ),
    ])
}

/// Wall-clock times on this machine.
pub fn milliseconds(cli: &Cli) -> Result<Vec<Row>> {
    let guests = Guests::new(&cli.guest)?;
    let rounds = cli.rounds.max(20);
    let milliseconds = |passed: &Passed| passed.time.as_secs_f64() * 1e3;
    let mut figures = (Vec::new(), Vec::new());
    // In turns, so that what else the machine does is shared out evenly.
    for _ in 0..rounds {
        let floor = once(&|| guests.floor(&cli.floor, Guest::Tiny))?;
        figures.0.push(milliseconds(&floor));
        let ours = once(&|| guests.vmm(&cli.coracle, Guest::Tiny, 1))?;
        figures.1.push(milliseconds(&ours));
    }
    let (floor, ours) = (median(figures.0), median(figures.1));
    let row = |name, figure, bound| Row {
        name,
        figure,
        unit: "ms",
        bound,
    };
    Ok(vec![
        row("floor: exec to a tiny guest's first exit", floor, None),
        row("VMM role: the same", ours, Some(TINY_MILLISECONDS)),
    ])
}

/// Ticks in millions.
pub fn millions(passed: &Passed) -> f64 {
    passed.ticks as f64 / 1e6
}

/// The median of a figure of a subject that is started so often.
pub fn median_of(
    rounds: usize,
    subject: &Subject<'_>,
    figure: &dyn Fn(&Passed) -> f64,
) -> Result<f64> {
    let figures: Result<Vec<_>> = (0..rounds.max(1))
        .map(|_| Ok(figure(&once(subject)?)))
        .collect();
    Ok(median(figures?))
}

/// Measures a subject once. One that hangs is started anew, which is told.
fn once(subject: &Subject<'_>) -> Result<Passed> {
    for attempt in 1..=ATTEMPTS {
        let (command, output) = subject()?;
        if let Some(passed) = to_first_byte(command, output)? {
            return Ok(passed);
        }
        eprintln!("bench: repeated: nothing came of attempt {attempt} of {ATTEMPTS}");
    }
    bail!("a program says nothing, however often it is started")
}
