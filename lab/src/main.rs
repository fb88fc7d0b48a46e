// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lab`: runs commands on a software-emulated KVM host.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use coracle_lab::cache::Cache;
use coracle_lab::debian;
use coracle_lab::emulator::Emulator;
use coracle_lab::host::{self, Place};
use coracle_lab::machine::{DEFAULT_MEMORY_MIB, Kind, Machine, emulator_version};
use coracle_lab::payload::{Disk, Payload};
use coracle_lab::protocol::Command;
use coracle_lab::session::{self, Options, Outcome};
use coracle_lab::snapshot::Lab;

/// The status of a command that did not end in time, as `timeout` gives it.
const TIMED_OUT: u8 = 124;

/// The status when the lab itself fails; a command rarely ends with it.
const LAB_FAILED: u8 = 125;

/// Runs commands on a software-emulated KVM host.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the lab's files and its snapshot
    Prepare(MachineOptions),
    /// Run a command in the lab, as root; its status becomes this program's
    Run(RunOptions),
    /// Run a command in the counting lab: `labtime` there prints what a command costs
    Bench(RunOptions),
    /// Open a shell in the lab
    Shell(RunOptions),
    /// Print where virtual machines run from here: `direct` or `lab`, and why
    Host,
    /// Print the folder of Debian's unpacked kernel package, fetching it if necessary
    Kernel,
    /// Print, line by line, this machine's sources of Debian packages for the lab's release
    Sources,
    /// Print what is in the cache
    Status,
    /// Empty the cache
    Clean,
}

#[derive(Debug, Args)]
struct MachineOptions {
    /// Count instructions: one CPU, repeatable, slower
    #[arg(long)]
    icount: bool,
    /// The lab's memory
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_MEMORY_MIB)]
    memory: u32,
}

#[derive(Debug, Args)]
struct RunOptions {
    #[command(flatten)]
    machine: MachineOptions,
    /// Give up after so many seconds; 0 for never [default: 900, a shell: 0]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// A file or folder for the lab [default destination: /payload/NAME]
    #[arg(long = "payload", value_name = "SOURCE[:DESTINATION]")]
    payloads: Vec<Payload>,
    /// Copy what the command leaves in /out into this folder
    #[arg(long = "out", value_name = "FOLDER")]
    results: Option<PathBuf>,
    /// Set a variable in the command's environment
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// The command is a file of this machine: hand it in first
    #[arg(long)]
    host_program: bool,
    /// Boot the lab instead of restoring its snapshot
    #[arg(long)]
    boot: bool,
    /// Start the command at most so many times, where the lab itself dies under it; each is reported
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    attempts: u8,
    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String)> {
    let (name, value) = text
        .split_once('=')
        .with_context(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

impl MachineOptions {
    fn machine(&self) -> Machine {
        let kind = if self.icount {
            Kind::Counting
        } else {
            Kind::Fast
        };
        Machine {
            kind,
            memory_mib: self.memory,
        }
    }
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().action {
        Action::Prepare(options) => prepare(&options),
        Action::Run(options) => run(options, Some(900)),
        Action::Bench(options) => bench(options),
        Action::Shell(options) => shell(options),
        Action::Host => show_host(),
        Action::Kernel => show_kernel(),
        Action::Sources => show_sources(),
        Action::Status => show_status(),
        Action::Clean => Cache::open().and_then(|cache| cache.clear()).map(|()| 0),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::from(LAB_FAILED)
        }
    }
}

fn prepare(options: &MachineOptions) -> Result<u8> {
    Lab::new(Cache::open()?, options.machine())?.snapshot()?;
    Ok(0)
}

fn run(mut options: RunOptions, timeout: Option<u64>) -> Result<u8> {
    if options.command.is_empty() {
        bail!("no command is given");
    }
    if options.host_program {
        let payload = Payload::named_as_itself(PathBuf::from(&options.command[0]))?;
        options.command[0] = payload.destination.display().to_string();
        options.payloads.push(payload);
    }
    let terminal_input = std::io::stdin().is_terminal();
    let command = Command {
        arguments: options.command.clone(),
        environment: options.environment.clone(),
        // Reading a terminal from the background would stop this process; `lab shell` is for that.
        stdin: !terminal_input,
        ..Command::default()
    };
    execute(&options, command, options.timeout.or(timeout))
}

fn bench(mut options: RunOptions) -> Result<u8> {
    options.machine.icount = true;
    run(options, Some(900))
}

fn shell(options: RunOptions) -> Result<u8> {
    let size = session::terminal_size().context("a shell needs a terminal at standard input")?;
    let mut command = Command {
        arguments: options.command.clone(),
        environment: options.environment.clone(),
        terminal: Some(size),
        stdin: true,
        ..Command::default()
    };
    if command.arguments.is_empty() {
        command.arguments = vec!["bash".to_owned(), "-l".to_owned()];
    }
    if let Ok(terminal) = std::env::var("TERM") {
        command.environment.push(("TERM".to_owned(), terminal));
    }
    execute(&options, command, options.timeout)
}

fn execute(options: &RunOptions, mut command: Command, timeout: Option<u64>) -> Result<u8> {
    let lab = Lab::new(Cache::open()?, options.machine.machine())?;
    let disk = Disk::new(lab.cache(), &options.payloads)?;
    command.payload_length = disk.length;
    command.results = options.results.is_some();
    let deadline = timeout
        .filter(|&seconds| seconds > 0)
        .map(Duration::from_secs);
    for attempt in 1..=options.attempts {
        if !options.machine.icount {
            command.freshness = Some(session::freshness()?);
        }
        let mut emulator = start(options, &lab, &disk)?;
        let session_options = Options {
            deadline,
            results: options.results.clone(),
            heartbeat: !options.machine.icount,
        };
        match session::run(&mut emulator, command.clone(), &session_options)? {
            Outcome::Exited(status) => return Ok(status),
            Outcome::Interrupted => return Ok(130),
            Outcome::TimedOut => {
                let seconds = timeout.unwrap_or_default();
                eprintln!(
                    "lab: the command did not end within {seconds} s; {}",
                    emulator.console()
                );
                return Ok(TIMED_OUT);
            }
            Outcome::LabDied => eprintln!(
                "lab: repeated: the lab died under attempt {attempt} of {}; {}",
                options.attempts,
                emulator.console()
            ),
        }
    }
    bail!("the lab ended before the command")
}

fn start(options: &RunOptions, lab: &Lab, disk: &Disk) -> Result<Emulator> {
    if options.boot {
        return lab.boot(disk);
    }
    let running = lab.restore(disk)?;
    if running.repeated > 0 {
        eprintln!(
            "lab: repeated: {} restores hung before this run",
            running.repeated
        );
    }
    Ok(running.emulator)
}

fn show_host() -> Result<u8> {
    let choice = host::choose();
    println!(
        "{}",
        if choice.place == Place::Direct {
            "direct"
        } else {
            "lab"
        }
    );
    eprintln!("lab: {}", choice.reason);
    Ok(0)
}

fn show_kernel() -> Result<u8> {
    println!("{}", debian::kernel(&Cache::open()?)?.folder().display());
    Ok(0)
}

fn show_sources() -> Result<u8> {
    for source in debian::sources()? {
        println!("{source}");
    }
    Ok(0)
}

fn show_status() -> Result<u8> {
    let choice = host::choose();
    println!("here:     {}", choice.reason);
    match emulator_version() {
        Ok(version) => println!("emulator: {version}"),
        Err(error) => println!("emulator: {error:#}"),
    }
    let cache = Cache::open()?;
    println!("cache:    {}", cache.root().display());
    for name in cache.names()? {
        println!("          {name}");
    }
    Ok(0)
}
