// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A lab that is up: booted once, then restored from its snapshot in a fraction of a second.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;

use crate::cache::{Cache, Key};
use crate::emulator::Emulator;
use crate::machine::{BootFiles, Machine, emulator_version};
use crate::payload::Disk;
use crate::progress::Step;
use crate::protocol::{Decoder, FromLab, Message, ToLab};

/// How long a boot may take; on a loaded machine it takes about ten seconds.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// How long the emulator may take to load or save a state.
const STATE_DEADLINE: Duration = Duration::from_secs(60);

/// How long a restored lab may take to answer. It takes milliseconds, or hangs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// How often a restore is tried before it is given up.
const ATTEMPTS: u32 = 3;

/// The machine with its files, ready to start.
#[derive(Debug)]
pub struct Lab {
    cache: Cache,
    machine: Machine,
    files: BootFiles,
    key: Key,
}

/// A lab that waits for a command.
#[derive(Debug)]
pub struct Running {
    /// The emulator.
    pub emulator: Emulator,
    /// Attempts that hung before this one.
    pub repeated: u32,
}

impl Lab {
    /// Makes what is missing of the lab's files.
    ///
    /// # Errors
    ///
    /// If something cannot be made, or the emulator is not the right one.
    pub fn new(cache: Cache, machine: Machine) -> Result<Self> {
        let emulator = emulator_version()?;
        let files = crate::files::prepare(&cache)?;
        let key = machine.snapshot_key(&files, &emulator);
        Ok(Self {
            cache,
            machine,
            files,
            key,
        })
    }

    /// The cache that the lab's files are in.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Makes the snapshot if it is not there, and returns its file.
    ///
    /// # Errors
    ///
    /// If the lab does not boot, or its state cannot be saved.
    pub fn snapshot(&self) -> Result<PathBuf> {
        let folder = self
            .cache
            .entry(&self.machine.family(), &self.key, |folder| {
                let kind = self.machine.kind.name();
                let step = Step::begin(&format!("boot the {kind} lab and take its snapshot"));
                let disk = Disk::new(&self.cache, &[])?;
                let mut emulator = self.boot(&disk)?;
                save(&mut emulator, &folder.join("state"))?;
                step.done();
                Ok(())
            })?;
        Ok(folder.join("state"))
    }

    /// Boots the lab, without a snapshot.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn boot(&self, disk: &Disk) -> Result<Emulator> {
        let mut emulator = Emulator::start(self.machine, &self.files, &disk.file, None)?;
        await_alive(&mut emulator, BOOT_DEADLINE)?;
        Ok(emulator)
    }

    /// Restores the lab. A restore that hangs is repeated, and reported as such.
    ///
    /// # Errors
    ///
    /// If there is no snapshot and none can be made, or each attempt fails.
    pub fn restore(&self, disk: &Disk) -> Result<Running> {
        let snapshot = self.snapshot()?;
        for attempt in 0..ATTEMPTS {
            let state = File::open(&snapshot)
                .with_context(|| format!("cannot open the snapshot {}", snapshot.display()))?;
            let mut emulator = Emulator::start(self.machine, &self.files, &disk.file, Some(state))?;
            await_status(&mut emulator, "paused")?;
            emulator.monitor.execute("cont", &json!({}))?;
            ToLab::Ping.send(&mut emulator.port)?;
            match await_alive(&mut emulator, ANSWER_DEADLINE) {
                Ok(()) => {
                    return Ok(Running {
                        emulator,
                        repeated: attempt,
                    });
                }
                Err(error) => eprintln!("lab: restore {} hung: {error:#}", attempt + 1),
            }
        }
        bail!("the lab hung after each of {ATTEMPTS} restores")
    }
}

fn await_alive(emulator: &mut Emulator, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut decoder = Decoder::default();
    let mut bytes = [0; 4096];
    let outcome = loop {
        match decoder.decode()? {
            Some(FromLab::Alive) => break Ok(()),
            Some(other) => break Err(anyhow!("the lab begins with {other:?}")),
            None => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break Err(anyhow!(
                "the lab does not answer within {} s",
                limit.as_secs()
            ));
        }
        emulator.port.set_read_timeout(Some(left))?;
        match emulator.port.read(&mut bytes) {
            Ok(0) => break Err(anyhow!("the emulator ended")),
            Ok(count) => decoder.push(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => break Err(error.into()),
        }
    };
    emulator.port.set_read_timeout(None)?;
    outcome.map_err(|error| anyhow!("{error}; {}", emulator.console()))
}

fn await_status(emulator: &mut Emulator, wanted: &str) -> Result<()> {
    let deadline = Instant::now() + STATE_DEADLINE;
    loop {
        let answer = emulator
            .monitor
            .execute("query-status", &json!({}))
            .with_context(|| emulator.console())?;
        if answer["status"] == wanted {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the emulator is {} instead of {wanted}", answer["status"]);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes the state of a lab that stands still to a file.
fn save(emulator: &mut Emulator, path: &Path) -> Result<()> {
    let monitor = &mut emulator.monitor;
    monitor.execute("stop", &json!({}))?;
    // The default is made for live migration over a network.
    monitor.execute(
        "migrate-set-parameters",
        &json!({ "max-bandwidth": 1_u64 << 40 }),
    )?;
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    monitor.pass("state", &file)?;
    monitor.execute("migrate", &json!({ "uri": "fd:state" }))?;
    let deadline = Instant::now() + STATE_DEADLINE;
    loop {
        let answer = monitor.execute("query-migrate", &json!({}))?;
        match answer["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed") => bail!("the emulator cannot save its state: {answer}"),
            _ if Instant::now() > deadline => bail!("saving the state takes too long: {answer}"),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
