// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What machines cost the host beyond the memory of their guests.

use std::fs;
use std::io::{PipeReader, Read, pipe};
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result, ensure};

use crate::Cli;
use crate::report::Row;
use crate::subject::{Kernel, Runs};

/// MiB of all processes of the only machine, at most.
const ALONE: f64 = 12.0;
/// MiB of each further machine, at most.
const FURTHER: f64 = 6.0;
/// Machines at the end of the second measurement.
const MACHINES: usize = 5;
/// Name by which the mapping of guest memory is known in `/proc`.
const GUEST_MEMORY: &str = "/memfd:guest";

/// The memory of one machine, and of each further one.
pub fn beyond_the_guest(cli: &Cli) -> Result<Vec<Row>> {
    let runs = Runs::new(
        &cli.coracle,
        &cli.guest,
        Kernel::Stock,
        cli.images.join("busybox"),
    )?;
    let group = Group::new()?;
    let mut machines = vec![Machine::start(&runs, &group)?];
    let alone = group.sum("Pss:", |mapping| !mapping.contains(GUEST_MEMORY))?;

    let before = (available()?, group.guest_memory()?);
    while machines.len() < MACHINES {
        machines.push(Machine::start(&runs, &group)?);
    }
    let after = (available()?, group.guest_memory()?);
    let taken = before.0 - after.0 - (after.1 - before.1);
    let further = taken / (MACHINES - 1) as f64;

    let row = |name, figure, bound| Row {
        name,
        figure,
        unit: "MiB",
        bound: Some(bound),
    };
    Ok(vec![
        row(
            "PSS of all processes of the only machine, guest memory not counted",
            alone,
            ALONE,
        ),
        row(
            "each further machine, by MemAvailable from 1 to 5, guest memory not counted",
            further,
            FURTHER,
        ),
    ])
}

/// A container that runs until it is dropped.
struct Machine {
    child: Child,
    _output: PipeReader,
}

impl Machine {
    fn start(runs: &Runs, group: &Group) -> Result<Self> {
        let (mut read, write) = pipe()?;
        let mut command = runs.command(&["sh", "-c", "echo x; sleep 1000000"]);
        command.stdout(write);
        group.join(&mut command);
        let child = command.spawn().context("cannot start coracle")?;
        drop(command);
        let machine = Self {
            child,
            _output: read.try_clone()?,
        };
        read.read_exact(&mut [0])
            .context("the container said nothing")?;
        Ok(machine)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Killed, it cleans up after itself all the same.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A control group that holds every process of the machines.
struct Group(PathBuf);

impl Group {
    fn new() -> Result<Self> {
        let path =
            Path::new("/sys/fs/cgroup").join(format!("coracle-bench-{}", std::process::id()));
        fs::create_dir(&path)
            .with_context(|| format!("cannot make the control group {}", path.display()))?;
        Ok(Self(path))
    }

    fn join(&self, command: &mut std::process::Command) {
        let procs = self.0.join("cgroup.procs");
        // SAFETY: between fork and exec of a program with one thread, anything may be done.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(command, move || fs::write(&procs, "0"));
        }
    }

    /// MiB of the memory that guests have touched: it is counted once, in the VMM's mapping.
    fn guest_memory(&self) -> Result<f64> {
        self.sum("Pss:", |mapping| mapping.contains(GUEST_MEMORY))
    }

    /// MiB of a field of `smaps`, over the mappings of all processes that `counts` picks.
    fn sum(&self, field: &str, counts: impl Fn(&str) -> bool) -> Result<f64> {
        let processes = fs::read_to_string(self.0.join("cgroup.procs"))?;
        let mut kib = 0u64;
        for process in processes.lines() {
            let smaps = fs::read_to_string(format!("/proc/{process}/smaps"))
                .with_context(|| format!("cannot read the mappings of process {process}"))?;
            kib += sum_field(&smaps, field, &counts);
        }
        ensure!(kib > 0, "the machines have no memory in {field}");
        Ok(kib as f64 / 1024.0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes that were killed leave the group a moment later.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// KiB of `field` over the mappings whose first line `counts`.
fn sum_field(smaps: &str, field: &str, counts: impl Fn(&str) -> bool) -> u64 {
    let mut counted = false;
    let mut kib = 0;
    for line in smaps.lines() {
        // A mapping begins with its address range; its fields follow.
        if line
            .split_whitespace()
            .next()
            .is_some_and(|word| !word.ends_with(':'))
        {
            counted = counts(line);
        } else if let Some(value) = line.strip_prefix(field).filter(|_| counted) {
            kib += value
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .unwrap_or(0);
        }
    }
    kib
}

/// MiB that the host has available.
fn available() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .context("no MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f00-7f10 rw-s 0000 00:01 5 /memfd:guest (deleted)\nSize: 8 kB\nPss: 100 kB\n\
5500-5510 r-xp 0000 00:01 5 /usr/bin/coracle\nPss:  7 kB\n\
7fff-7fff rw-p 0000 00:00 0\nPss:  5 kB\nPss_Dirty: 9 kB\n";

    #[test]
    fn guest_memory_is_told_from_the_rest() {
        assert_eq!(
            sum_field(SMAPS, "Pss:", |mapping| !mapping.contains(GUEST_MEMORY)),
            12
        );
        assert_eq!(
            sum_field(SMAPS, "Pss:", |mapping| mapping.contains(GUEST_MEMORY)),
            100
        );
    }
}
