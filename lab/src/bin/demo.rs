// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `make demo`: runs an image's container in a virtual machine and shows what it is and what it
//! cost. It runs where the virtual machine runs: on this host, or in the lab.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tempfile::TempDir;

/// What runs in the container: it says where it is, then waits, so that it can be looked at.
const SCRIPT: &str = "echo \"hello from $(. /etc/os-release; echo \"$PRETTY_NAME\"), \
     process $$ of a container\"; uname -r; cat /proc/sys/kernel/random/boot_id; read -r wait";

/// Runs an image's container in a virtual machine and shows what it cost.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Options {
    /// The executable
    #[arg(long, env = "CORACLE_BIN")]
    coracle: PathBuf,
    /// Folder of the guest's kernel and initial file system
    #[arg(long, env = "CORACLE_GUEST")]
    guest: PathBuf,
    /// Folder of the test images
    #[arg(long, env = "CORACLE_IMAGES")]
    images: PathBuf,
}

/// What one run showed.
struct Seen {
    lines: Vec<String>,
    to_first_output: Duration,
    memory: Memory,
}

/// The memory of all of a run's processes, in KiB, each page divided among those who share it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    processes: usize,
    own: u64,
    guest: u64,
}

fn main() -> ExitCode {
    match show(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(options: &Options) -> Result<()> {
    let image = options.images.join("debian");
    // The first run of an image unpacks it: it is to be one, and nothing stays.
    let places = TempDir::new().context("cannot make a temporary directory")?;
    println!(
        "$ coracle run --rm -i {} bash -c '{SCRIPT}'",
        image.display()
    );
    let first = run(options, &image, places.path())?;
    let again = run(options, &image, places.path())?;
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let line = |index: usize| first.lines.get(index).map_or("(nothing)", String::as_str);

    println!("{}", line(0));
    println!();
    println!("guest's kernel            {} (boot {})", line(1), line(2));
    println!(
        "host's kernel             {} (boot {})",
        host.trim(),
        host_boot.trim()
    );
    println!(
        "command to first output   {:.2} s, unpacking the image",
        seconds(&first)
    );
    println!(
        "                          {:.2} s, image unpacked before",
        seconds(&again)
    );
    println!(
        "memory it cost            {:.1} MiB in {} processes, and {:.1} MiB of guest memory",
        mib(again.memory.own),
        again.memory.processes,
        mib(again.memory.guest)
    );
    ensure!(
        line(2) != host_boot.trim(),
        "the container saw the host's own kernel"
    );
    Ok(())
}

fn seconds(seen: &Seen) -> f32 {
    seen.to_first_output.as_secs_f32()
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn run(options: &Options, image: &Path, places: &Path) -> Result<Seen> {
    let begun = Instant::now();
    let mut child = Command::new(&options.coracle)
        .env("CORACLE_GUEST", &options.guest)
        .env("CORACLE_ROOT", places.join("root"))
        .env("CORACLE_STATE", places.join("state"))
        .args(["run", "--rm", "-i"])
        .arg(image)
        .args(["bash", "-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", options.coracle.display()))?;
    let watched = watch(&mut child, begun, &options.coracle);
    if watched.is_err() {
        // It may have ended already.
        let _ = child.kill();
    }
    let status = child.wait()?;
    let seen = watched?;
    ensure!(status.success(), "coracle run ended with {status}");
    Ok(seen)
}

fn watch(child: &mut Child, begun: Instant, program: &Path) -> Result<Seen> {
    let stdout = child.stdout.take().context("standard output is no pipe")?;
    let mut stdout = BufReader::new(stdout);
    let mut lines = Vec::new();
    let mut to_first_output = Duration::ZERO;
    for index in 0..3 {
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        if index == 0 {
            to_first_output = begun.elapsed();
        }
        ensure!(
            !line.is_empty(),
            "the container ended after {index} lines of its output"
        );
        lines.push(line.trim_end().to_owned());
    }
    let memory = memory_of(program)?;
    let mut stdin = child.stdin.take().context("standard input is no pipe")?;
    stdin.write_all(b"\n")?;
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest)?;
    Ok(Seen {
        lines,
        to_first_output,
        memory,
    })
}

/// The memory of all processes of a program.
fn memory_of(program: &Path) -> Result<Memory> {
    let program = program.canonicalize()?;
    let mut memory = Memory::default();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // What is no process, or has ended since, has no such link.
        if fs::read_link(process.join("exe")).is_ok_and(|target| target == program) {
            memory.processes += 1;
            memory.add(&fs::read_to_string(process.join("smaps")).unwrap_or_default());
        }
    }
    Ok(memory)
}

impl Memory {
    /// Adds a process by its `smaps`. Guest memory is what is mapped from an unnamed file in memory.
    fn add(&mut self, smaps: &str) {
        let mut guest = false;
        for line in smaps.lines() {
            if let Some(rest) = line.strip_prefix("Pss:") {
                let kib = rest
                    .split_whitespace()
                    .next()
                    .and_then(|kib| kib.parse::<u64>().ok());
                *(if guest {
                    &mut self.guest
                } else {
                    &mut self.own
                }) += kib.unwrap_or_default();
            } else if line
                .split_whitespace()
                .next()
                .is_some_and(|word| word.contains('-'))
            {
                guest = line.contains("/memfd:");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_processs_own() {
        let smaps = "7f00-7f01 rw-s 00000000 00:01 9    /memfd:guest (deleted)\n\
                     Size: 9 kB\nPss: 300 kB\n\
                     5500-5501 r-xp 00000000 fd:01 7    /usr/bin/coracle\n\
                     Pss: 20 kB\nPss_Dirty: 5 kB\n\
                     7ffe-7fff rw-p 00000000 00:00 0    [stack]\nPss: 4 kB\n";
        let mut memory = Memory::default();

        memory.add(smaps);

        assert_eq!(
            memory,
            Memory {
                processes: 0,
                own: 24,
                guest: 300
            }
        );
    }
}
