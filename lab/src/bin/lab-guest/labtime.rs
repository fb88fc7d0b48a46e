// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `labtime COMMAND`: how many instructions a command costs.
//!
//! In a counting lab the time stamp counter counts instructions, those of nested guests and of the
//! kernel included. It is read just before the command's process is made and after its end; with
//! `--first-byte` also when the first byte of its standard output arrives. Idle waits let the
//! counter jump to the next timer; the `busy` row, taken from the scheduler, leaves idle time out.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result};
use clap::Parser;

/// Counts the instructions of a command (in a counting lab), in millions.
#[derive(Debug, Parser)]
#[command(name = "labtime", version)]
struct Options {
    /// Measure so many times and print the median.
    #[arg(short = 'n', long, default_value_t = 1, value_name = "TIMES")]
    repeat: usize,
    /// Measure the first run too. It reads files from the disk, and waiting for a disk lets the
    /// counter jump; without this a run that does not count comes first.
    #[arg(long)]
    cold: bool,
    /// Also measure until the first byte of standard output.
    #[arg(long)]
    first_byte: bool,
    /// Print JSON, on standard output, and the command's output nowhere.
    #[arg(long)]
    json: bool,
    /// The command.
    #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What one run cost, in instructions.
struct Cost {
    first_byte: Option<u64>,
    exit: u64,
    busy: u64,
    status: ExitStatus,
}

/// The program's entry.
pub fn main() -> ExitCode {
    let options = Options::parse();
    match measure_all(&options) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("labtime: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn measure_all(options: &Options) -> Result<u8> {
    let mut costs = Vec::new();
    let warm_up = usize::from(!options.cold);
    for round in 0..options.repeat.max(1) + warm_up {
        let (cost, output) = measure(options)?;
        let failed = !cost.status.success();
        if round >= warm_up || failed {
            if !options.json {
                std::io::stdout().write_all(&output)?;
            }
            costs.push(cost);
        }
        if failed {
            break;
        }
    }
    let rows = [
        (
            "first_byte",
            costs.iter().filter_map(|cost| cost.first_byte).collect(),
        ),
        ("exit", costs.iter().map(|cost| cost.exit).collect()),
        (
            "busy",
            costs.iter().map(|cost| cost.busy).collect::<Vec<u64>>(),
        ),
    ];
    let status = costs
        .last()
        .and_then(|cost| cost.status.code())
        .unwrap_or(128);
    if options.json {
        let mut object = serde_json::Map::new();
        for (name, counts) in &rows {
            object.insert((*name).to_owned(), counts.as_slice().into());
        }
        object.insert("status".to_owned(), status.into());
        println!("{}", serde_json::Value::Object(object));
    } else {
        for (name, mut counts) in rows {
            if let Some(line) = summary(name, &mut counts) {
                eprintln!("{line}");
            }
        }
    }
    Ok(u8::try_from(status).unwrap_or(u8::MAX))
}

/// `exit 12.345 M instructions, spread 0.1 %`.
fn summary(name: &str, counts: &mut [u64]) -> Option<String> {
    counts.sort_unstable();
    let median = *counts.get(counts.len() / 2)?;
    let spread = counts.last()?.checked_sub(*counts.first()?)?;
    let percent = 100.0 * spread as f64 / median.max(1) as f64;
    Some(format!(
        "labtime: {name:10} {:12.3} M instructions (median of {}, spread {percent:.2} %)",
        median as f64 / 1e6,
        counts.len()
    ))
}

fn measure(options: &Options) -> Result<(Cost, Vec<u8>)> {
    let mut command = Command::new(&options.command[0]);
    command.args(&options.command[1..]);
    if options.first_byte || options.json {
        command.stdout(Stdio::piped());
    }
    let busy_before = busy_time()?;
    // Nothing may stand between this process and exec but a vfork: a forked copy of this process
    // would be paid for by the command. (The standard library does so unless asked for more.)
    let begin = time_stamp();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", options.command[0]))?;
    let mut output = Vec::new();
    let mut first_byte = None;
    if let Some(mut stdout) = child.stdout.take() {
        let mut byte = [0];
        if stdout.read(&mut byte)? == 1 {
            first_byte = Some(time_stamp());
            output.push(byte[0]);
            stdout.read_to_end(&mut output)?;
        }
    }
    let status = child.wait().context("cannot wait for the command")?;
    let end = time_stamp();
    let busy_after = busy_time()?;
    let cost = Cost {
        first_byte: first_byte.map(|time| time.saturating_sub(begin)),
        exit: end.saturating_sub(begin),
        busy: busy_after.saturating_sub(busy_before),
        status,
    };
    Ok((cost, output))
}

fn time_stamp() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU and touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Nanoseconds in which any process ran on any CPU: in a counting lab, instructions.
fn busy_time() -> Result<u64> {
    let text = fs::read_to_string("/proc/schedstat").context("cannot read /proc/schedstat")?;
    Ok(busy_of(&text))
}

/// The sum of the CPUs' run times, which are the seventh numbers of the lines that begin with `cpu`.
fn busy_of(schedstat: &str) -> u64 {
    schedstat
        .lines()
        .filter(|line| line.starts_with("cpu"))
        .filter_map(|line| line.split_whitespace().nth(7)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_sums_the_seventh_number_of_each_cpu() {
        let text = "version 15\ntimestamp 1\n\
                    cpu0 0 0 0 0 0 0 100 5 9\ndomain0 3 1 1 1 1 1 1 1\n\
                    cpu1 0 0 0 0 0 0 23 5 9\n";

        assert_eq!(busy_of(text), 123);
    }

    #[test]
    fn summary_prints_the_median_and_the_spread() {
        let line = summary("exit", &mut [3_000_000, 1_000_000, 2_000_000]).unwrap();

        assert_eq!(
            line,
            "labtime: exit              2.000 M instructions (median of 3, spread 100.00 %)"
        );
    }
}
